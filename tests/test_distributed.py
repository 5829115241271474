"""Several processes: how they find each other, that they end together, and that they train what one process trains."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from repgls_jax import cluster
from repgls_jax.cluster import Plan
from repgls_jax.train import checkpoint, place, sharding
from repgls_jax.train.journal import Journal

ROOT = pathlib.Path(__file__).parents[1]
WORKER = str(ROOT / "tests" / "distributed_worker.py")
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("env", "given", "expected"),
    [
        ({}, {}, None),
        ({}, {"processes": 1}, None),
        (SLURM, {"processes": 1}, None),
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, {}, None),
        (ADDRESS, {}, None),
        ({**ADDRESS, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, {}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {"tpu": True}, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, {"tpu": True}, None),
        ({"JAX_PLATFORMS": "cpu"}, {"tpu": True}, None),
        (SLURM, {"coordinator": "h:1", "processes": 2, "process": 1}, Plan("the flags", 2, "h:1", 1)),
        (
            {**ADDRESS, "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2", "JAX_LOCAL_DEVICE_IDS": "4,5"},
            {},
            Plan("the environment", 3, "10.0.0.1:1234", 2, (4, 5)),
        ),
        (SLURM, {}, Plan("SLURM", 8)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {}, Plan("SLURM", 8, local_devices=(1,))),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "2"}, {}, Plan("SLURM", 8, local_devices=(0,))),
        (SLURM | {"SLURM_GPUS_ON_NODE": "8"}, {}, Plan("SLURM", 8, local_devices=(2, 3))),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0", "SLURM_GPUS_ON_NODE": "4"},
            {},
            Plan("SLURM", 8, local_devices=(0, 1, 2, 3)),
        ),
        (
            SLURM | {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1"},
            {},
            Plan("SLURM", 8, local_devices=(0, 1)),
        ),
        (
            SLURM | {"SLURM_GPUS_PER_TASK": "a100:4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            {},
            Plan("SLURM", 8, local_devices=(0, 1, 2, 3)),
        ),
        (SLURM, {"local_devices": (6,)}, Plan("SLURM", 8, local_devices=(6,))),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "5,3", "SLURM_GPUS_ON_NODE": "8"}, {}, Plan("SLURM", 8)),
        (OMPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:9"}, {}, Plan("Open MPI", 4, process=3)),
        (OMPI | ADDRESS | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {}, Plan("Open MPI", 4, "10.0.0.1:1234", 3, (2, 3))),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, {}, Plan("the TPU slice", 4)),
        ({}, {"tpu": True}, Plan("the TPU slice", 0)),
        ({}, {"tpu": True, "processes": 16}, Plan("the TPU slice", 16)),
    ],
)
def test_the_job_follows_from_flags_and_environment(env, given, expected):
    assert cluster.plan(env, **given) == expected


@pytest.mark.parametrize(
    ("env", "given", "message"),
    [
        ({}, {"coordinator": "h:1", "processes": 2}, "--process is missing"),
        ({}, {"process": 1}, "--coordinator, --processes is missing"),
        ({}, {"coordinator": "h", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({}, {"coordinator": "h:1", "processes": 2, "process": 2}, "expected 0 <= process < processes"),
        ({}, {"processes": 2}, "nothing says where process 0 is"),
        (SLURM, {"processes": 4}, "--processes=4, but SLURM speaks of 8"),
        ({"SLURM_NTASKS": "8"}, {}, "not started by srun"),
        ({"SLURM_NNODES": "4"}, {}, "not started by srun"),
        (SLURM | {"SLURM_GPUS_ON_NODE": "6"}, {}, "4 processes share 6 GPUs"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, {}, "JAX_COORDINATOR_ADDRESS is missing"),
        ({**ADDRESS, "JAX_NUM_PROCESSES": "x", "JAX_PROCESS_ID": "0"}, {}, "JAX_NUM_PROCESSES='x'"),
        (OMPI, {}, "does not say where process 0 is"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, {}, "PMI started 2 processes"),
    ],
)
def test_what_would_end_in_lonely_processes_is_refused(env, given, message):
    with pytest.raises(ValueError, match=message):
        cluster.plan(env, **given)


def test_checkpoints_stay_where_a_run_began_with_them(tmp_path):
    run = tmp_path / "luvit-1"
    run.mkdir()
    assert str(place.of(run)) == str(run / "checkpoints")
    with pytest.raises(ValueError, match="cannot be kept at ftp://host"):
        place.put(run, "ftp://host")
    place.put(run, f"{tmp_path}/bucket/")
    place.put(run, f"{tmp_path}/bucket")
    assert str(place.of(run)) == f"{tmp_path}/bucket/luvit-1"
    with pytest.raises(ValueError, match=r"has its checkpoints at .*bucket/luvit-1, not at /other/luvit-1"):
        place.put(run, "/other")
    assert json.loads((tmp_path / "bucket" / "luvit-1" / place.TOKEN).read_text()) == {"run": "luvit-1"}
    (tmp_path / "luvit-2" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="luvit-2/checkpoints, not at"):
        place.put(tmp_path / "luvit-2", str(tmp_path / "bucket"))


def test_a_work_directory_without_renames_is_refused(tmp_path, monkeypatch):
    place.require_renames(tmp_path / "new")
    assert not any((tmp_path / "new").iterdir())

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ValueError, match=r"cannot be renamed \(Operation not supported\).*hierarchical"):
        place.require_renames(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def start(command: list[str], processes: int, devices: int, **changes: str) -> subprocess.Popen:
    whole = [sys.executable, "launch/local.py", f"--processes={processes}", f"--devices={devices}", "--"]
    return subprocess.Popen(
        [*whole, sys.executable, *command],
        cwd=ROOT,
        env=os.environ | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def work(kind: str, folder: pathlib.Path, *options: str) -> tuple[int, str]:
    process = start([WORKER, kind, str(folder), *options], 2, 2)
    text = process.communicate()[0]
    return process.returncode, text


@pytest.mark.slow
def test_messages_files_and_predictions_of_two_processes(tmp_path):
    code, text = work("primitives", tmp_path)
    assert code == 0, text
    assert "[0] primitives passed in 0" in text and "[1] primitives passed in 1" in text
    assert [line["process"] for line in Journal(tmp_path / "journal.jsonl").read("line")] == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("differs", 1, "train.batch is 1 here, 0 there"),
        ("fails_first", 1, "FileNotFoundError"),
        ("fails_other", 1, "[1] error: no space left on the second host"),
        ("unshared", 1, "is not there, but process 0 has it; the work directory must be one folder"),
        ("dies", 137, "Terminating process because the JAX distributed service detected fatal errors"),
    ],
)
def test_one_process_that_fails_ends_all_with_its_reason(tmp_path, kind, code, message):
    (tmp_path / "host0").mkdir()
    (tmp_path / "host0" / "manifest.json").write_text("{}")
    began = time.monotonic()
    found, text = work(kind, tmp_path)
    assert found == code and message in text, text
    assert time.monotonic() - began < 120


@pytest.mark.slow
def test_one_that_is_missing_is_waited_for_and_told(tmp_path):
    command = [sys.executable, WORKER, "primitives", str(tmp_path), "--join_timeout=2"]
    env = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "process 2 on" in ran.stderr and "waited 2 s for 3 processes of the environment" in ran.stderr


def test_the_launcher_ends_all_when_one_fails_and_passes_signals_on(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "if os.environ['JAX_PROCESS_ID'] == sys.argv[1]: sys.exit(7)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    process = start([str(script), "1"], 2, 1)
    text = process.communicate()[0]
    assert process.returncode == 7 and text == "[0] up\n" and time.monotonic() - began < 40
    process = start([str(script), "none"], 2, 1)
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(2)} == {"[0] up\n", "[1] up\n"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM


COMMAND = ["launch/train.py", "--config=configs/luvit.py:size=test,policy=expert", "--config.train.checkpoint_every=6"]

# Most of the time would go into compilation: half as long this way, and the same for all runs.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def train(root: pathlib.Path, processes: int, *options: str) -> pathlib.Path:
    """Runs the main job on four devices; returns the folder of the LU-ViT."""
    process = start([*COMMAND, f"--workdir={root}", *options], processes, 4 // processes, XLA_FLAGS=QUICK)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    (folder,) = root.glob("luvit-*")
    return folder


def losses(folder: pathlib.Path) -> np.ndarray:
    return np.array([[e["step"], e["loss"], e["grad_norm"]] for e in Journal(folder / "journal.jsonl").read("train")])


def params(folder: pathlib.Path, step: int) -> dict:
    kept = checkpoint.Checkpoints(place.of(folder))
    found = jax.device_get(kept.restore_params(sharding.make_mesh(devices=jax.devices()[:1]), step))
    kept.close()
    return found


def same(a: dict, b: dict, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def resumable(run: pathlib.Path, root: pathlib.Path) -> None:
    """A work directory in which the run stands at step 6, with its data as it is."""
    root.mkdir()
    for stage in ("data", "evidence"):
        (done,) = run.parent.glob(f"{stage}-*")
        (root / done.name).symlink_to(done)
    copy = shutil.copytree(run, root / run.name)
    if not (copy / "checkpoints").exists():
        shutil.copytree(place.of(run), copy / "checkpoints")
        (copy / place.POINTER).unlink()
    shutil.rmtree(copy / "checkpoints" / "12")
    (copy / "stage.json").unlink()


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_each_goes_on_from_the_others_checkpoint(tmp_path):
    """Two processes with two devices each, and one with four, which has its data and checkpoints elsewhere."""
    two = train(tmp_path / "two", 2)
    (data,) = two.parent.glob("data-*")
    build = f"--build={data / 'set'}"
    one = train(tmp_path / "one", 1, build, f"--disk={tmp_path / 'disk'}", f"--checkpoints={tmp_path / 'bucket'}")
    assert sorted(p.name for p in (tmp_path / "bucket" / one.name).iterdir() if p.name.isdigit()) == ["12", "6"]
    assert len([*(tmp_path / "disk").glob("*/manifest.json")]) == 1
    told = losses(two)
    assert told[:, 0].tolist() == list(range(1, 13))
    np.testing.assert_allclose(told, losses(one), rtol=0, atol=1e-6)
    same(params(two, 12), params(one, 12), 1e-5)
    scored = [pq.read_table(next(run.parent.glob("evaluation-*/predictions.parquet"))) for run in (two, one)]
    for name in ("image_id", "finding", "label"):
        assert scored[0].column(name).equals(scored[1].column(name))
    np.testing.assert_allclose(*(t.column("probability").to_numpy() for t in scored), rtol=0, atol=1e-5)

    for run, processes, options in ((two, 1, []), (one, 2, [build])):
        root = tmp_path / f"from_{run.parent.name}"
        resumable(run, root)
        resumed = train(root, processes, *options)
        np.testing.assert_allclose(losses(resumed), losses(run), rtol=0, atol=1e-6)
        same(params(resumed, 6), params(run, 6), 0)
        same(params(resumed, 12), params(run, 12), 1e-5)
