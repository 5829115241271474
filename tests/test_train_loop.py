"""The trainer: the same losses on one device and on eight, exact resume, what it tells, and what stops it."""

import json
import os
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training

from repgls_jax.data.meter import Meter
from repgls_jax.train import checkpoint, loop, profiler, sharding, telemetry
from repgls_jax.train.journal import Journal
from repgls_jax.train.signals import StoppedError


@pytest.fixture(scope="module")
def losses_of_one_device(tmp_path_factory) -> list[float]:
    return training.run(tmp_path_factory.mktemp("one"), 6)[1]


@pytest.mark.parametrize("preset", sharding.PRESETS)
def test_one_device_and_eight_give_the_same_losses(losses_of_one_device, tmp_path, preset):
    final, eight = training.run(tmp_path, 6, devices=8, mesh=preset)
    np.testing.assert_allclose(eight, losses_of_one_device, rtol=0, atol=1e-5)
    split = [x for x in jax.tree.leaves(final.params) if not x.sharding.is_fully_replicated]
    assert bool(split) == (preset != "dp")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_run_is_bitwise_the_undisturbed_one(tmp_path, ema):
    whole, losses = training.run(tmp_path / "whole", 10, ema=ema)
    made = training.task()

    class StopError(Exception):
        pass

    def until_six(start: int):
        for step, batch in zip(range(start, 6), made.batches(start), strict=False):
            del step
            yield batch
        raise StopError

    with pytest.raises((StopError, RuntimeError)):
        training.run(tmp_path / "cut", 10, made=training.task(batches=until_six), ema=ema)
    resumed, again = training.run(tmp_path / "cut", 10, ema=ema)
    training.same(whole, resumed)
    assert again == losses  # each step is told once, with the same value
    finished, _ = training.run(tmp_path / "cut", 10, ema=ema)  # nothing is left to do
    training.same(whole, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_step_that_is_saved(tmp_path, number):
    whole, losses = training.run(tmp_path / "whole", 10)
    before = signal.getsignal(number)

    def batches(start: int):
        for step in range(start, 10**6):
            if step == 5 and start == 0:
                os.kill(os.getpid(), number)
            yield training.batch_at(step)

    with pytest.raises(StoppedError, match=rf"stopped by {number.name} after step 6 of 10.*same command") as caught:
        training.run(tmp_path / "cut", 10, made=training.task(batches=batches))
    assert caught.value.code == 128 + number
    assert checkpoint.Checkpoints(tmp_path / "cut" / "checkpoints").latest() == 6
    assert signal.getsignal(number) == before
    resumed, again = training.run(tmp_path / "cut", 10)
    training.same(whole, resumed)
    assert again == losses
    assert training.told(tmp_path / "cut", "valid") == training.told(tmp_path / "whole", "valid")


def test_a_signal_after_the_last_step_ends_the_run_too(tmp_path):
    """What follows the training would otherwise begin in spite of it."""

    def validate(params, mesh):
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # for the thread that listens
        return plain(params, mesh)

    plain, told = training.task().validate, []
    made = training.task(validate=validate)
    training.run(tmp_path / "whole", 4, made=made)
    told.append(True)
    with pytest.raises(StoppedError, match="after step 4 of 4, which is saved"):
        training.run(tmp_path / "cut", 4, made=made)
    training.same(training.run(tmp_path / "whole", 4)[0], training.run(tmp_path / "cut", 4)[0])


def test_nan_stops_with_the_step_its_batch_and_an_older_checkpoint(tmp_path):
    made = training.task(poison=6, identify=lambda index: [f"film-{i}" for i in index])
    with pytest.raises(loop.DivergedError, match=r"loss at step 7 is nan.*diverged\.json.*learning rate"):
        training.run(tmp_path, 10, made=made)
    index = sorted(set(training.batch_at(6)["index"].tolist()))
    record = json.loads((tmp_path / "diverged.json").read_text())
    assert (record["step"], record["scalars"]["loss"], record["index"]) == (7, None, index)
    assert record["image_id"] == [f"film-{i}" for i in index]
    kept = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert kept.choose() == 4


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    """Loss and gradient may be finite where the parameters are not: here the loss does not use one of them."""
    spare = np.array([1.0, np.nan], np.float32)
    made = training.task(
        init=lambda key: training.init(key) | {"queries": jnp.zeros(2)}, weights=lambda: {"queries": spare}
    )
    with pytest.raises(loop.DivergedError, match="the state at step 4 is nan"):
        training.run(tmp_path, 8, made=made)
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").latest() is None


def test_weights_are_taken_at_a_fresh_start_only(tmp_path):
    given = {"mlp": {"up": {"kernel": np.full((training.WIDTH, training.HIDDEN), 0.25, np.float64)}}}
    asked = []

    def weights() -> dict:
        asked.append(1)
        return given

    seen = []

    def validate(params, mesh) -> dict[str, float]:
        seen.append(jax.device_get(params))
        return {"score": 0.0}

    made = training.task(weights=weights, validate=validate)
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "checkpoint_every": 1, "mesh": "fsdp", "devices": 8}
    final, _ = training.run(tmp_path, 1, made=made, ema=0.9, **still)
    kernel = given["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(final.params["mlp"]["up"]["kernel"], kernel)
    np.testing.assert_array_equal(seen[0]["mlp"]["up"]["kernel"], kernel)  # the average starts there too
    assert final.params["mlp"]["up"]["kernel"].dtype == np.float32
    plain = jax.device_get(training.init(jax.random.key(7)))
    np.testing.assert_allclose(final.params["mlp"]["down"]["kernel"], plain["mlp"]["down"]["kernel"], atol=1e-7)
    training.run(tmp_path, 2, made=made, ema=0.9, **still)
    assert len(asked) == 1


def test_weights_of_another_network_are_all_named(tmp_path):
    wrong = {"mlp": {"up": {"kernel": np.zeros((3, 3))}, "sideways": np.zeros(2)}}
    with pytest.raises(ValueError, match=r"mlp/up/kernel \(64, 128\) gets \(3, 3\); mlp/sideways is unknown"):
        training.run(tmp_path, 1, made=training.task(weights=lambda: wrong))


def test_unknown_preset_and_uneven_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'pp' is unknown.*fsdp"):
        training.run(tmp_path, 2, mesh="pp")
    with pytest.raises(ValueError, match="12 does not divide over 8"):
        sharding.put_batch({"x": np.zeros(12)}, sharding.make_mesh())


def test_costs_are_told_for_each_interval(tmp_path):
    training.run(tmp_path, 8, accumulate=2)
    entries = training.told(tmp_path, "interval")
    assert [e["step"] for e in entries] == [4, 8] and [e["steps"] for e in entries] == [4, 4]
    for entry in entries:
        assert 0 < entry["step_ms"] <= entry["step_ms_p95"] and 0 <= entry["data_wait_share"] < 1
        assert entry["mfu"] is None and entry["host_bytes_peak"] > 1e8
        seconds = entry["steps"] * training.BATCH / entry["images_per_second"]
        assert seconds >= entry["step_ms"] / 1e3
    # Three products in the forward pass; each is two in the backward one, but for those that would reach the input.
    w, h, c, b = training.WIDTH, training.HIDDEN, training.FINDINGS, training.BATCH
    forward = 2 * b * (2 * w * h + w * c)
    assert training.told(tmp_path, "compiled")[0]["flops"] == 3 * forward - 2 * b * w * h


def test_utilisation_is_of_all_chips_and_their_median_step(monkeypatch):
    clock = iter(np.cumsum([0.0, 0.5, 0.5, 2.0]))
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(telemetry.chips, "of", lambda kind: types.SimpleNamespace(flops=1e12))
    costs = telemetry.Telemetry(32, jax.devices()[:4], 10**12, Meter())
    for _ in range(3):
        costs.arrived()
    told = costs.interval()
    assert told["mfu"] == pytest.approx(1e12 / 0.5 / 4e12) and told["step_ms"] == 500
    assert told["images_per_second"] == 32 and 500 < told["step_ms_p95"] < 2000
    assert "MFU 50%" in telemetry.words(told) and costs.interval() == {}


def test_profile_of_a_window_of_steps(tmp_path):
    profiler.ask("3:4")
    try:
        training.run(tmp_path, 6)
        training.run(tmp_path, 8)  # goes on behind the window
    finally:
        profiler.ask("")
    assert len([*(tmp_path / "profile").rglob("*.xplane.pb")]) == 1
    for text in ("3", "4:3", "0:2", "a:b"):
        with pytest.raises(ValueError, match="first and last step"):
            profiler.ask(text)


def test_scalars_also_go_to_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    drawn: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int):
            drawn.append((folder, 0.0, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            drawn.append((name, value, step))

        def close(self) -> None:
            drawn.append(("closed", 0.0, 0))

    fake = types.ModuleType("tensorboardX")
    fake.__spec__ = types.SimpleNamespace(name="tensorboardX")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    _, losses = training.run(tmp_path, 4)
    assert drawn[0] == (str(tmp_path / "tensorboard"), 0.0, 1) and drawn[-1][0] == "closed"
    assert [value for name, value, _ in drawn if name == "train/loss"] == losses
    names = {name for name, _, _ in drawn}
    assert {"valid/score", "interval/step_ms"} <= names and "interval/mfu" not in names


def test_journal_survives_a_torn_last_line(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", None)
    for step in (1, 2, 3):
        journal.record("train", step=step, loss=float("nan") if step == 2 else 0.5)
    with (tmp_path / "j.jsonl").open("a") as f:
        f.write('{"kind": "train", "st')
    assert [e["loss"] for e in journal.read("train")] == [0.5, None, 0.5]
    journal.rewind(2)
    journal.record("train", step=3, loss=0.25)
    assert [e["loss"] for e in journal.read("train")] == [0.5, None, 0.25]
