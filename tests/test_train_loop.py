"""The trainer on a tiny LU-ViT: the same losses on one device and on eight, exact resume, and what stops it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from repgls_jax import policies
from repgls_jax.models import luvit as luvit_model
from repgls_jax.models import vit
from repgls_jax.train import checkpoint, loop, luvit, sharding, state
from repgls_jax.train.journal import Journal

C, SIDE, BATCH = 5, 16, 16
SILENT = Journal(None, None)


def config(steps: int, **changes: object) -> ml_collections.ConfigDict:
    settings = {"learning_rate": 3e-3, "weight_decay": 0.01, "warmup": 0.1, "clip": 1.0, "seed": 7, "mesh": "dp"}
    settings |= {"steps": steps, "batch_size": BATCH, "checkpoint_every": 4}
    return ml_collections.ConfigDict(settings | changes)


def batch_at(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    states = rng.choice([-2, -1, 0, 1], (BATCH, C)).astype(np.int8)
    p = np.select([states == 1, states == 0, states == -1], [1.0, 0.0, 0.7], np.nan).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 1), dtype=np.uint8),
        "state": states,
        "p": p,
        "observed": rng.random((BATCH, C)) < 0.9,
        "rate": rng.uniform(-0.5, 0.9, (BATCH, C)).astype(np.float32),
    }


def task(steps: int, poison: int | None = None) -> loop.Task:
    """A task whose batch ``poison`` holds a NaN rate."""
    model = luvit_model.LUViT(C, vit.Size(16, 2, 2, 32), 8, dropout=0.1)

    def batches(start: int):
        for step in range(start, 10**6):
            batch = batch_at(step)
            if step == poison:
                batch["rate"][:] = np.nan
            yield batch

    return loop.Task(
        name="tiny",
        init=lambda key: model.init(key, jnp.zeros((1, SIDE, SIDE, 1), jnp.uint8))["params"],
        loss=luvit.make_loss(model, policies.PolicyConfig(name="expert"), steps, 0.1),
        batches=batches,
        validate=lambda params, mesh: {"score": float(sum(jnp.sum(x) for x in jax.tree.leaves(params)))},
        best="score",
        meta={"model": "tiny"},
    )


def run(folder: pathlib.Path, steps: int, devices: int = 1, **changes: object) -> tuple[state.TrainState, list[float]]:
    mesh = sharding.make_mesh(jax.devices()[:devices])
    final, _ = loop.train(task(steps), config(steps, **changes), folder, SILENT, mesh)
    entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return final, [e["loss"] for e in entries if e["kind"] == "train"]


def same(a: state.TrainState, b: state.TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize("preset", sharding.PRESETS)
def test_one_device_and_eight_give_the_same_losses(tmp_path, preset):
    _, one = run(tmp_path / "1", 6)
    final, eight = run(tmp_path / "8", 6, devices=8, mesh=preset)
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
    split = [x for x in jax.tree.leaves(final.params) if not x.sharding.is_fully_replicated]
    assert bool(split) == (preset == "fsdp")


def test_resumed_run_is_bitwise_the_undisturbed_one(tmp_path):
    whole, losses = run(tmp_path / "whole", 10)
    task_ = task(10)
    broken = config(10)

    class StopError(Exception):
        pass

    def until(stop: int):
        def batches(start: int):
            for step, batch in zip(range(start, stop), task_.batches(start), strict=False):
                del step
                yield batch
            raise StopError

        return batches

    interrupted = loop.Task(**{**vars(task_), "batches": until(6)})
    with pytest.raises((StopError, RuntimeError)):
        loop.train(interrupted, broken, tmp_path / "cut", SILENT, sharding.make_mesh(jax.devices()[:1]))
    resumed, again = run(tmp_path / "cut", 10)
    same(whole, resumed)
    assert again == losses  # each step is told once, with the same value
    finished, _ = run(tmp_path / "cut", 10)  # nothing is left to do
    same(whole, finished)


def test_nan_stops_with_the_step_and_an_older_checkpoint(tmp_path):
    with pytest.raises(loop.DivergedError, match=r"step 7 is nan.*learning rate"):
        loop.train(task(10, poison=6), config(10), tmp_path, SILENT)
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").latest() == 4


def test_checkpoints_keep_the_newest_and_the_best(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path, best="score")
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3), (5, 0.4)):
        kept.save(step, {"x": jnp.full(3, float(step))}, {"step": step}, {"score": score})
    kept.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 4, 5]
    assert kept.latest() == 5 and kept.meta()["step"] == 5 and kept.meta(2)["step"] == 2


def test_missing_checkpoint_says_what_there_is(tmp_path):
    empty = checkpoint.Checkpoints(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*none.*Train first"):
        empty.meta()
    with pytest.raises(FileNotFoundError, match="of step 3"):
        empty.restore({}, 3)


def test_unknown_preset_and_uneven_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'pp' is unknown.*fsdp"):
        loop.train(task(2), config(2, mesh="pp"), tmp_path, SILENT)
    with pytest.raises(ValueError, match="12 does not divide over 8"):
        sharding.put_batch({"x": np.zeros(12)}, sharding.make_mesh())


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
