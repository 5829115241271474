"""A network and data of next to nothing, for tests of the trainer itself."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from repgls_jax import losses
from repgls_jax.train import loop, sharding, state
from repgls_jax.train.journal import Journal

WIDTH, HIDDEN, FINDINGS, BATCH, EXAMPLES = 64, 128, 5, 16, 1000
SILENT = Journal(None, None)


def config(steps: int, **changes: Any) -> ml_collections.ConfigDict:
    """The trainer's settings."""
    settings = {"learning_rate": 3e-3, "weight_decay": 0.01, "warmup": 0.1, "clip": 1.0, "layer_decay": 1.0}
    settings |= {"seed": 7, "mesh": "dp", "model_parallel": 0, "accumulate": 1, "ema": 0.0, "freeze": ()}
    settings |= {"steps": steps, "batch_size": BATCH, "checkpoint_every": 4}
    return ml_collections.ConfigDict(settings | changes)


def batch_at(step: int) -> dict[str, np.ndarray]:
    """The batch of a step, counted from 0: a function of the step alone."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
    y = (x[:, :FINDINGS] > 0).astype(np.float32)
    return {"x": x, "y": y, "index": rng.integers(0, EXAMPLES, BATCH).astype(np.int32)}


def init(key: jax.Array, hidden: int = HIDDEN) -> dict[str, Any]:
    """Parameters under paths that the sharding rules know."""
    up, down, head = jax.random.split(key, 3)
    return {
        "mlp": {
            "up": {"kernel": 0.1 * jax.random.normal(up, (WIDTH, hidden)), "bias": jnp.zeros(hidden)},
            "down": {"kernel": 0.1 * jax.random.normal(down, (hidden, WIDTH)), "bias": jnp.zeros(WIDTH)},
        },
        "presence": {"kernel": 0.1 * jax.random.normal(head, (WIDTH, FINDINGS))},
    }


def loss(params: Any, batch: Any, key: jax.Array, step: jax.Array) -> dict[str, losses.Term]:
    """Of a perceptron with dropout, so that the key matters."""
    del step
    mlp = params["mlp"]
    hidden = jnp.tanh(batch["x"] @ mlp["up"]["kernel"] + mlp["up"]["bias"])
    hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape)
    logits = (batch["x"] + hidden @ mlp["down"]["kernel"] + mlp["down"]["bias"]) @ params["presence"]["kernel"]
    error = jnp.logaddexp(0.0, logits) - batch["y"] * logits
    return {"presence": losses.Term(error, jnp.ones_like(error))}


def task(poison: int | None = None, **changes: Any) -> loop.Task:
    """A task whose batch ``poison`` holds a NaN."""

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, 10**6):
            batch = batch_at(step)
            if step == poison:
                batch["x"][3, 5] = np.nan
            yield batch

    values: dict[str, Any] = {
        "name": "tiny",
        "init": init,
        "loss": loss,
        "batches": batches,
        "validate": lambda params, mesh: {"score": float(sum(jnp.sum(x) for x in jax.tree.leaves(params)))},
        "best": "score",
        "meta": {"model": "tiny"},
    }
    return loop.Task(**(values | changes))


def run(
    folder: pathlib.Path, steps: int, devices: int = 1, made: loop.Task | None = None, **changes: Any
) -> tuple[state.TrainState, list[float]]:
    """Trains; the final state, and the losses that the journal tells."""
    mesh = sharding.make_mesh(changes.get("mesh", "dp"), jax.devices()[:devices])
    final, _ = loop.train(made or task(), config(steps, **changes), folder, SILENT, mesh)
    return final, [entry["loss"] for entry in told(folder, "train")]


def told(folder: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    """The journal's entries of a kind, without the time of day."""
    entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "time"} for e in entries if e["kind"] == kind]


def same(a: Any, b: Any) -> None:
    """Asserts that two trees hold the same bits."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
