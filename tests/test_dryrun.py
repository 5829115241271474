"""A dry run from config to verdict, on simulated devices; and for a TPU topology where libtpu is installed."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import luvit as config_file
from repgls_jax import chips
from repgls_jax.dryrun import measure, report, target
from repgls_jax.dryrun.collectives import SLICES, Collective
from repgls_jax.train import sharding

ROOT = pathlib.Path(__file__).parents[1]
GIB = 2**30


def config(arguments="", **model):
    made = config_file.get_config(f"size=test{arguments}")
    made.model.update(model)
    return made


def eight(hbm_bytes=None):
    """Eight simulated devices, called v5e where their memory is given."""
    chip = None if hbm_bytes is None else dataclasses.replace(chips.CHIPS["v5e"], hbm_bytes=hbm_bytes)
    return dataclasses.replace(target.simulated(8), chip=chip)


@pytest.fixture(scope="module")
def fsdp():
    """The dry run of a scanned network, fully sharded, on chips that have room."""
    return report.run(config(",mesh=fsdp,model=Ti/16", scan=True), eight(GIB), 0)


def test_a_run_that_fits_has_no_fault_and_all_figures(fsdp):
    assert fsdp["faults"] == []
    assert fsdp["mesh"] == {"data": 1, "fsdp": 8, "model": 1}
    assert fsdp["batch"] == 32
    train, evaluate = fsdp["train"], fsdp["evaluate"]
    assert 0 < train["memory"]["peak"] < train["memory"]["available"] == GIB
    assert train["memory"]["aliased"] > 0  # the state is overwritten in place
    assert train["loops_unknown"] == []
    # The compiler counts the body of the scan once, the trace each turn.
    assert train["flops"]["counted"] < train["flops"]["executed"]
    assert train["flops"]["executed"] == pytest.approx(train["flops"]["model"], rel=0.06)
    assert {"all-gather", "all-reduce"} <= {one["kind"] for one in train["collectives"]}
    assert {one["axes"] for one in train["collectives"]} == {"fsdp"}
    assert evaluate["images"] == 128
    assert "all-reduce" not in {one["kind"] for one in evaluate["collectives"]}


def test_estimates_hang_together(fsdp):
    guess = fsdp["train"]["estimate"]
    times = {name: guess[f"{name}_seconds"] for name in ("compute", "memory", "link")}
    assert guess["step_seconds"]["best"] == max(times.values())
    assert guess["step_seconds"]["worst"] == pytest.approx(sum(times.values()))
    assert times[guess["bound"].removesuffix("s")] == max(times.values())
    assert 0 < guess["mfu"]["worst"] < guess["mfu"]["best"] <= 1
    assert guess["images_per_second"]["best"] == pytest.approx(32 / max(times.values()))


def test_the_result_is_json_and_text(fsdp):
    assert json.loads(json.dumps(fsdp)) == fsdp
    shown = report.text(fsdp)
    assert "all-gather" in shown and "train step of 32 films" in shown and "MFU" in shown


def test_tables_have_a_cell_for_every_column(fsdp):
    refused = {k: v for k, v in fsdp.items() if k not in ("train", "evaluate")} | {"refused": "Ran out of memory"}
    lines = report.table([fsdp, refused]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "Ti/16" in lines[2] and "all-gather" in lines[2] and "does not fit" in lines[3]


def test_room_is_what_is_left_over_what_a_film_takes():
    memory = {"available": 100, "peak": 60, "temporaries": 40}  # 20 do not grow, 10 more for each film of a chip
    assert report.room({"train": {"memory": memory}, "batch": 8, "chips": 2}) == 8
    assert report.room({"train": {"memory": {"peak": 60, "temporaries": 40}}, "batch": 8, "chips": 2}) == 0


def test_a_chip_that_is_too_small_is_a_fault(fsdp):
    step = measured(fsdp["train"]["memory"]["peak"])
    assert measure.faults(step, "fsdp", step.memory.peak) == []
    (fault,) = measure.faults(step, "fsdp", step.memory.peak - 1)
    assert f"{step.memory.peak:,}" in fault and "lower the batch" in fault


def measured(peak):
    memory = measure.Memory(peak, 0, 0, 0, 0)
    return measure.Measured("train step", 0.0, 0.0, memory, 0.0, 0.0, 0, 0, (), ())


def test_a_collective_that_the_preset_should_not_have_is_a_fault():
    mesh = sharding.make_mesh("fsdp", target.simulated(8).devices)
    split = NamedSharding(mesh, P("fsdp"))
    shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)] * 2
    step = measure.compile_step("train step", jax.jit(jnp.dot, out_shardings=split), shapes, mesh, None)
    assert measure.faults(step, "fsdp", None) == []
    (fault,) = measure.faults(step, "dp", None)
    assert "all-gather over fsdp, 1 times 2,048 bytes" in fault and "only all-reduce" in fault
    assert fault.endswith(("it comes from jit(dot)/dot_general", "it comes from b"))  # jax 0.11 names the argument


def test_a_sum_over_slices_may_gather():
    gather = Collective("all-gather", ("data",), 8, 1, 2048, "jit(train_step)/dot_general", 2)
    between = Collective("all-reduce", (SLICES,), 2, 1, 2048, "", 0)
    exchange = Collective("all-to-all", ("data",), 8, 1, 2048, "", 2)
    step = dataclasses.replace(measured(1), collectives=(gather, between))
    assert measure.faults(step, "dp", None) == []
    assert len(measure.faults(dataclasses.replace(step, collectives=(gather,)), "dp", None)) == 1
    assert measure.faults(dataclasses.replace(step, collectives=(gather,)), "dp", None, gathers=True) == []
    assert len(measure.faults(dataclasses.replace(step, collectives=(gather, between, exchange)), "dp", None)) == 1


def test_a_product_in_steps_is_no_fault():
    # The TPU compiler may turn a gather beside a product into permutes within it.
    for op_name, faults in (("jit(train_step)/mlp/up/dot_general", 0), ("jit(train_step)/roll", 1)):
        permute = Collective("collective-permute", ("fsdp",), 8, 7, 2048, op_name, 2)
        assert len(measure.faults(dataclasses.replace(measured(1), collectives=(permute,)), "fsdp", None)) == faults


def test_faults_are_told_in_words(fsdp):
    assert "\nFAULT: too large" in report.text(fsdp | {"faults": ["too large"]})


def test_what_the_compiler_refuses_is_told():
    told = measure._does_not_fit(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.\n\nTotal hbm usage >= 21.00G:"
    )
    assert told.needed == 20.5 * GIB and "Exceeded" in str(told)


@given(
    slope=st.integers(10**4, 10**8),
    fixed=st.integers(0, 10**9),
    unit=st.sampled_from([1, 16, 256]),
    room=st.integers(10**6, 16 * 10**9),
    refuses=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_largest_batch_of_an_affine_program(slope, fixed, unit, room, refuses):
    def peak(batch):
        assert batch % unit == 0 and batch > 0
        need = fixed + slope * batch // unit
        if refuses and need > room:
            raise measure.DoesNotFitError(need, "does not fit")
        return need

    found = measure.largest_batch(peak, unit, room)
    best = max(0, (room - fixed) // slope)  # units
    if found.size:
        assert peak(found.size) <= room
    # Sizes are rounded down to multiples of 8 units from 16 on, and are powers of 2 below.
    assert found.size // unit <= best
    assert found.size // unit >= (0.9 * best // 8 * 8 if best >= 16 else best // 2)
    assert len(found.tried) <= 12


def test_unknown_topologies_are_refused():
    with pytest.raises(ValueError, match="v5e:16x16"):
        target.topology("v5e")


def test_without_libtpu_the_command_that_helps_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "jax\[tpu\]=='):
        target.topology("v5e:4x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, jax[tpu]")
def test_for_a_tpu_that_nobody_has():
    result = report.run(config(",mesh=fsdp,model=demo/16", scan=True, dtype="bfloat16"), target.topology("v5e:2x2"), 0)
    assert result["faults"] == []
    assert result["chip"] == "TPU v5e" and result["chips"] == 4
    assert result["train"]["loops_unknown"] == []
    assert "all-gather" in {one["kind"] for one in result["train"]["collectives"]}


@pytest.mark.slow
def test_the_script_writes_json_and_ends_well(tmp_path):
    file = tmp_path / "dryrun.json"
    command = [
        sys.executable,
        "launch/dryrun.py",
        "--config=configs/luvit.py:size=test",
        "--devices=1",
        f"--json={file}",
    ]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 simulated devices" in done.stdout
    result = json.loads(file.read_text())
    assert result["chips"] == 1 and result["faults"] == []
