"""Runs the method from data to evaluation, or up to the rates.

    python launch/train.py --config=configs/luvit.py
    python launch/train.py --config=configs/luvit.py:data=table,source=DIR,policy=expert --workdir=runs
    python launch/train.py --config=configs/rgn.py

Each stage leaves a folder in the work directory and is reused when its inputs are the same; an interrupted training
goes on from its last checkpoint. Ctrl-C or SIGTERM ends a training after its step and saves it (exit code 130 or 143),
a second one at once. Several processes (launch/local.py, launch/slurm.sh, launch/tpu_pod.sh, mpirun, or
--coordinator, --processes and --process) train one network; the work directory must be a folder that all of them see.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax import distributed, job, sources, workflow
from repgls_jax.config import parse_flags, plain
from repgls_jax.data import fetch
from repgls_jax.train import profiler
from repgls_jax.train.journal import duration
from repgls_jax.train.loop import DivergedError

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with arguments after a colon", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "folder of the stages")
_BUILD = flags.DEFINE_string(
    "build", None, "folder or gs:// address of a complete build (data_prep/build.py), in the place of the data set"
)
_DISK = flags.DEFINE_string("disk", None, "folder on a fast disk of each machine to copy the image shards to")
_CHECKPOINTS = flags.DEFINE_string("checkpoints", "", "folder or gs:// address for LU-ViT's checkpoints")
_PROFILE = flags.DEFINE_string("profile", "", "FIRST:LAST, steps of each training to trace into its folder 'profile'")
job.define_flags()


def main(argv: list[str]) -> None:
    """Runs the stages; faults of settings or input end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _CONFIG.value is None:
        raise app.UsageError("which config? For the main job: --config=configs/luvit.py")
    logging.set_verbosity(logging.WARNING)  # the libraries' own lines would bury the journal's
    config = _CONFIG.value
    try:
        profiler.ask(_PROFILE.value)
        settings = plain(config)  # the file is read here
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if _BUILD.value is not None:
        try:
            image_size = fetch.describe(_BUILD.value)[0]["image_size"]
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from None
        with config.unlocked():
            config.data.dataset = sources.BUILT
            config.data.options = {"source": _BUILD.value, "image_size": image_size}
    with job.launched(settings | {"build": _BUILD.value}):
        _run()


def _run() -> None:
    journal = distributed.journal()
    devices = jax.devices()
    journal.say(f"{len(devices)} device(s): {devices[0].device_kind}; jax {jax.__version__}")
    try:
        disk = pathlib.Path(_DISK.value) if _DISK.value else None
        done = workflow.run(_CONFIG.value, pathlib.Path(_WORKDIR.value), journal, disk, _CHECKPOINTS.value)
    except (ValueError, OSError, DivergedError) as error:
        raise SystemExit(f"error: {error}") from None
    journal.say("\nstage        took     folder")
    for name, stage in done.items():
        took = "reused" if stage.reused else duration(stage.seconds)
        journal.say(f"{name:12} {took:8} {stage.folder}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
