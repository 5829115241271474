"""Runs the method from data to evaluation, or up to the rates.

    python launch/train.py --config=configs/luvit.py
    python launch/train.py --config=configs/luvit.py:data=table,source=DIR,policy=expert --workdir=runs
    python launch/train.py --config=configs/rgn.py

Each stage leaves a folder in the work directory and is reused when its inputs are the same; an interrupted training
goes on from its last checkpoint.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax import workflow
from repgls_jax.config import parse_flags
from repgls_jax.train.journal import Journal, duration
from repgls_jax.train.loop import DivergedError

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with arguments after a colon", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "folder of the stages")


def main(argv: list[str]) -> None:
    """Runs the stages; faults of settings or input end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _CONFIG.value is None:
        raise app.UsageError("which config? For the main job: --config=configs/luvit.py")
    logging.set_verbosity(logging.WARNING)  # the libraries' own lines would bury the journal's
    journal = Journal()
    devices = jax.devices()
    journal.say(f"{len(devices)} device(s): {devices[0].device_kind}; jax {jax.__version__}")
    try:
        done = workflow.run(_CONFIG.value, pathlib.Path(_WORKDIR.value), journal)
    except (ValueError, OSError, DivergedError) as error:
        raise SystemExit(f"error: {error}") from None
    journal.say("\nstage        took     folder")
    for name, stage in done.items():
        took = "reused" if stage.reused else duration(stage.seconds)
        journal.say(f"{name:12} {took:8} {stage.folder}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
