"""Compiles a run's steps without data or chips: do they fit, what do they exchange, how fast could they be.

    python launch/dryrun.py --config=configs/luvit.py:size=full,model=B/16                  # this machine
    python launch/dryrun.py --config=configs/luvit.py:size=full,model=B/16,mesh=fsdp --devices=8
    python launch/dryrun.py --config=configs/luvit.py:size=full,model=L/16,mesh=hybrid --topology=v5e:16x16 --slices=2 \
        --config.model.scan=true --config.model.remat=dots --find_batch --json=dryrun.json

    python launch/dryrun.py --table=rows              # a Markdown table of the JSON files in a folder

Ends with 1 if a step does not fit in the chip's memory, or holds a collective that its preset should not have. Times
are rooflines, bounds that no run reaches; see docs/tpu.md.
"""

import json
import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax import config as config_lib
from repgls_jax.dryrun import report, target
from repgls_jax.train.journal import finite

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with arguments after a colon", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice such as v5e:16x16; needs libtpu, no TPU")
_SLICES = flags.DEFINE_integer("slices", 1, "such slices, joined by the data centre's network", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", None, "devices to simulate on this machine's CPU", lower_bound=1)
_BATCH = flags.DEFINE_integer(
    "batch_size", 0, "films of a step; 0 takes the config's, or the largest found", lower_bound=0
)
_FIND = flags.DEFINE_bool("find_batch", False, "look for the largest batch that fits: about three more compilations")
_EVALUATE = flags.DEFINE_bool("evaluate", True, "compile the evaluation step too")
_JSON = flags.DEFINE_string("json", None, "file to write the numbers to")
_TABLE = flags.DEFINE_string("table", None, "folder of such files: print them as a table and compile nothing")
_RESOLVED = flags.DEFINE_bool("resolved", False, "print every setting of the config")

_SHOWN = ("model", "policy", "train", "evaluate")


def _target() -> target.Target:
    if _TOPOLOGY.value and _DEVICES.value:
        raise ValueError("--topology and --devices name two targets; give one")
    if _TOPOLOGY.value:
        return target.topology(_TOPOLOGY.value, _SLICES.value)
    if _SLICES.value > 1:
        raise ValueError(f"--slices={_SLICES.value} is of a --topology; give one")
    return target.simulated(_DEVICES.value) if _DEVICES.value else target.here()


def main(argv: list[str]) -> None:
    """Compiles and prints; faults of settings end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _TABLE.value:
        files = sorted(pathlib.Path(_TABLE.value).glob("*.json"))
        print(report.table([json.loads(file.read_text()) for file in files]))
        return
    if _CONFIG.value is None:
        raise app.UsageError("which config? For the main job: --config=configs/luvit.py")
    logging.set_verbosity(logging.ERROR)
    config = _CONFIG.value
    if config.get("task") != "luvit":
        raise SystemExit("error: a dry run is of LU-ViT; give --config=configs/luvit.py")
    for name in _SHOWN if not _RESOLVED.value else config:
        print(f"{name}: {json.dumps(config_lib.plain(config).get(name))}", flush=True)
    try:
        result = report.run(
            config, _target(), _BATCH.value, _FIND.value, _EVALUATE.value, say=lambda line: print(line, flush=True)
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\n{report.text(result)}")
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(finite(result), indent=1) + "\n")
    if result["faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=config_lib.parse_flags)
