"""What one process of a job does in test_distributed.py; started by launch/local.py.

What takes long to import is imported where it is used: most of the jobs end before.
"""

import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax._src import xla_bridge

from repgls_jax import cluster, distributed, job

ROWS = 21  # not a multiple of anything


def primitives(folder: pathlib.Path) -> None:
    """Messages, gathering and predictions."""
    from repgls_jax.train import sharding

    me = jax.process_index()
    calls = []
    told = distributed.from_first("a", lambda: calls.append(me) or {"who": me, "nan": float("nan")})
    assert told["who"] == 0 and told["nan"] != told["nan"] and calls == ([0] if me == 0 else [])
    distributed.together("b")
    if me == 0:
        (folder / "shared").write_text("same")
    distributed.together("c")
    distributed.require_shared(folder / "shared")
    for preset, ways in (("dp", 0), ("fsdp", 0), ("tp", 2), ("tp", 4)):
        mesh = sharding.make_mesh(preset, model_parallel=ways)
        _predictions(mesh)
    distributed.journal().at(folder / "journal.jsonl").record("line", process=me)
    print(f"primitives passed in {me}")


def _predictions(mesh: jax.sharding.Mesh) -> None:
    """Rows come back in order and once, however the mesh deals them out."""
    from repgls_jax.data import wording
    from repgls_jax.findings import CHEXPERT
    from repgls_jax.train import luvit, rgn, sharding

    size, (host, hosts) = 8, sharding.host_part(mesh)
    forward = jax.jit(lambda params, images: (images[:, :2, 0, 0] * params, images[:, :1, 0, 0] + params))

    def batches():
        for first in range(0, ROWS, size):
            index = np.arange(first, first + size)[host * size // hosts :][: size // hosts]
            image = np.repeat(index, 4).reshape(-1, 2, 2, 1).astype(np.uint8)
            yield {"image": image, "index": np.where(index < ROWS, index, -1).astype(np.int32)}

    found = luvit.predict(forward, jnp.float32(2), batches(), mesh)
    np.testing.assert_array_equal(found["probability"], 2.0 * np.arange(ROWS)[:, None] * np.ones(2))
    np.testing.assert_array_equal(found["rate"][:, 0], np.arange(ROWS) + 2.0)
    words = wording.Wording(
        study_ids=[str(i) for i in range(2 * ROWS)],
        arrays={"x": np.arange(2 * ROWS, dtype=np.float32)},
        expert=np.zeros((2 * ROWS, len(CHEXPERT)), np.float32),
        p=np.zeros((2 * ROWS, len(CHEXPERT)), np.float32),
        weight=np.zeros((2 * ROWS, len(CHEXPERT)), np.float32),
        mentioned=np.zeros((2 * ROWS, len(CHEXPERT)), bool),
        cut=0,
    )
    apply = jax.jit(lambda params, batch: params * batch["x"][:, None] + jnp.zeros(len(CHEXPERT)))
    rows = np.arange(1, 2 * ROWS, 2)
    rates = rgn.predict(apply, jnp.float32(3), words, rows, mesh, size=8)
    np.testing.assert_array_equal(rates, 3.0 * rows[:, None] * np.ones(len(CHEXPERT)))


def main() -> None:
    """argv: what to do, a folder, and flags."""
    kind, folder, *rest = sys.argv[1:]
    job.define_flags()
    flags.FLAGS([sys.argv[0], *rest])
    assert not xla_bridge.backends_are_initialized(), "importing the package touches devices"
    number = int(os.environ["JAX_PROCESS_ID"])
    if kind == "dies":
        plan = cluster.plan(os.environ)
        assert plan is not None
        with job.Joined(plan, 60, heartbeat=5):
            if number == 1:
                os.kill(os.getpid(), 9)
            distributed.together("never")
        return
    with job.launched({"train": {"batch": number if kind == "differs" else 1}}):
        if kind == "primitives":
            primitives(pathlib.Path(folder))
        elif kind == "fails_first":
            distributed.from_first("work", lambda: (time.sleep(1), pathlib.Path(folder, "none").read_text()))
        elif kind == "fails_other":
            if number == 1:
                raise SystemExit("error: no space left on the second host")
            distributed.together("never")
        elif kind == "unshared":
            distributed.SEEN = 0.5
            distributed.require_shared(pathlib.Path(folder, f"host{number}", "manifest.json"))


if __name__ == "__main__":
    main()
