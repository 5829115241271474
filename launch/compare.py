"""Trains the same network under several label policies and seeds, and compares them on the test split.

    python launch/compare.py --config=configs/luvit.py --policies=u_ones,expert,rgn --seeds=0,1,2 --output=results

Every run is a stage of the work directory, so an interrupted comparison goes on where it stopped. Writes compare.json
and compare.md to --output.
"""

import json
import pathlib

import ml_collections
import numpy as np
import pyarrow.parquet as pq
from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax import checks, distributed, evaluate, job, workflow
from repgls_jax.config import parse_flags, plain
from repgls_jax.data import shards
from repgls_jax.results import compare, table
from repgls_jax.train.loop import DivergedError

_CONFIG = config_flags.DEFINE_config_file("config", "configs/luvit.py", "config file, with arguments after a colon")
_WORKDIR = flags.DEFINE_string("workdir", "runs", "folder of the stages")
_POLICIES = flags.DEFINE_list("policies", None, "label policies; the first is the baseline", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the runs")
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
job.define_flags()


def _with(policy: str, seed: int) -> ml_collections.ConfigDict:
    config = _CONFIG.value.copy_and_resolve_references()
    config.policy.name = policy
    config.seed = config.rgn.train.seed = seed
    return config


def main(argv: list[str]) -> None:
    """Runs what is missing, then compares."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    try:
        settings = plain(_CONFIG.value)  # the file is read here
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    with job.launched({**settings, "policies": _POLICIES.value, "seeds": _SEEDS.value}):
        _compare()


def _compare() -> None:
    journal, output = distributed.journal(), pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    folders: dict[str, list[pathlib.Path]] = {policy: [] for policy in _POLICIES.value}
    try:
        for policy in _POLICIES.value:  # a misspelt arm should be told before the first is trained
            checks.check(_with(policy, 0))
        for seed in _SEEDS.value:
            for policy in _POLICIES.value:
                journal.say(f"\n== {policy}, seed {seed}")
                chain = workflow.run(_with(policy, int(seed)), pathlib.Path(_WORKDIR.value), journal)
                folders[policy].append(chain["evaluation"].folder)
    except (ValueError, OSError, DivergedError) as error:
        raise SystemExit(f"error: {error}") from None
    if not distributed.is_first():
        return
    vocabulary = shards.vocabulary(chain["data"].folder / "set" / "shards")
    shape = (-1, len(vocabulary))
    tables = {arm: [pq.read_table(f / evaluate.PREDICTIONS) for f in ran] for arm, ran in folders.items()}
    one = next(iter(tables.values()))[0]
    label = one.column("label").to_numpy(zero_copy_only=False).astype(np.float32).reshape(shape)
    rows = compare.arms(
        {arm: [t.column("probability").to_numpy().reshape(shape) for t in ran] for arm, ran in tables.items()},
        _POLICIES.value[0],
        np.nan_to_num(label).astype(np.int8),
        ~np.isnan(label),
        one.column("patient_id").to_pylist()[:: len(vocabulary)],
        vocabulary,
    )
    (output / "compare.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    text = table.format_arms(rows, _POLICIES.value[0])
    (output / "compare.md").write_text(text)
    journal.say("\n" + text)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
