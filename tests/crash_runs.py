"""Real trainings in processes of their own, for tests/crashes.py.

The processes are forked from one that has imported everything and touched no device: a start takes a second, not ten.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
import training
from absl import logging

from repgls_jax import cluster, distributed, job, workflow
from repgls_jax.train import loop, sharding
from repgls_jax.train.journal import Journal

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 600  # seconds that a training may take


def luvit(root: pathlib.Path) -> None:
    """What launch/train.py does up to LU-ViT, on 60 films, with a policy that needs no other network: 34 steps."""
    config = runpy.run_path(str(ROOT / "configs" / "luvit.py"))["get_config"]("size=test,policy=expert")
    config.data.options.count = 60
    config.train.update({"batch_size": 8, "epochs": 6.0, "checkpoint_every": 3})
    journal = Journal(stream=sys.stderr)
    done = workflow.prepare(config, root, journal)
    workflow.train_luvit(config, done, root, journal)


def perceptron(root: pathlib.Path) -> None:
    """The network of tests/training.py, which compiles in no time: 40 steps."""
    folder = root / "luvit-none"
    folder.mkdir(exist_ok=True)
    loop.train(training.task(), training.config(40, checkpoint_every=3, ema=0.9), folder, Journal(stream=sys.stderr))


def pair(root: pathlib.Path, port: int, process: int) -> None:
    """One of two processes that train the perceptron together, its parameters split between them: 200 steps."""
    logging.set_verbosity(logging.ERROR)
    with job.Joined(cluster.Plan("this test", 2, f"localhost:{port}", process), 120):
        mesh = sharding.make_mesh("fsdp")
        host, hosts = sharding.host_part(mesh)

        def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
            for batch in training.task().batches(start):
                yield {name: np.split(values, hosts)[host] for name, values in batch.items()}

        config = training.config(200, checkpoint_every=20, ema=0.9, mesh="fsdp")
        journal = Journal(stream=sys.stderr) if process == 0 else distributed.journal()
        (root / "luvit-pair").mkdir(exist_ok=True)
        loop.train(training.task(batches=batches), config, root / "luvit-pair", journal, mesh)


NETWORKS = {"luvit": luvit, "perceptron": perceptron}


def train(network: str, root: pathlib.Path) -> None:
    """Trains in ``root``, telling a person on standard error."""
    logging.set_verbosity(logging.ERROR)
    NETWORKS[network](root)


def start(log: pathlib.Path, function: Callable[..., None], *arguments: object) -> int:
    """Runs a function in a forked process; its process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True), sys.__stderr__
        function(*arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 a forked process must not return into its parent's program
        traceback.print_exc()
    os._exit(code)


def wait(process: int) -> int:
    """The exit code of a process, negative for a signal."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"process {process} took more than {LIMIT} s")


@dataclasses.dataclass
class Trial:
    """One training in a folder of its own, which shares the stages before with the others."""

    root: pathlib.Path
    network: str

    @property
    def log(self) -> pathlib.Path:
        """What the processes said."""
        return self.root / "log.txt"

    @property
    def run(self) -> pathlib.Path | None:
        """Folder of the run, once it exists."""
        return next(iter(self.root.glob("luvit-*")), None)

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of the checkpoints; may not exist."""
        return (self.run or self.root / "none") / "checkpoints"

    def steps(self) -> list[int]:
        """Of the finished checkpoints."""
        found = [p.name for p in self.checkpoints.iterdir()] if self.checkpoints.exists() else []
        return sorted(int(name) for name in found if name.isdigit())

    def begin(self) -> int:
        """Starts the training, or goes on with it."""
        return start(self.log, train, self.network, self.root)

    def finish(self) -> str:
        """Trains to the end; what the process said.

        Raises:
          AssertionError: it failed, or began anew although there was a checkpoint.
        """
        before, newest = self.log.read_text() if self.log.exists() else "", self.steps()[-1:]
        code = wait(self.begin())
        said = self.log.read_text()[len(before) :]
        assert code == 0, f"exit code {code}: {said[-800:]}"
        damaged = "is damaged" in said
        if newest and not damaged and f"resumed at step {newest[0]} " not in said and "reused" not in said:
            raise AssertionError(f"did not go on from step {newest[0]}: {said[-800:]}")
        return said

    def digest(self) -> str:
        """Of the final state, as the library reads it, and of what the journal tells of losses and validation."""
        result = self.root / "digest.txt"
        assert wait(start(self.log, write_digest, self.checkpoints, self.steps()[-1], result)) == 0, (
            self.log.read_text()
        )
        assert self.run is not None
        told = []
        for line in (self.run / "journal.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry["kind"] in ("train", "valid"):
                told.append({name: value for name, value in entry.items() if name != "time"})
        return result.read_text() + hashlib.sha256(json.dumps(told).encode()).hexdigest()


def write_digest(checkpoints: pathlib.Path, step: int, result: pathlib.Path) -> None:
    """SHA-256 of every array of a checkpoint, path by path."""
    logging.set_verbosity(logging.FATAL)
    folder, handler = checkpoints / str(step) / "state", ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
    state = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    total = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(value)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    result.write_text(f"{step} {total.hexdigest()} ")
