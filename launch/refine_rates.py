"""Refines a run's rates with a few hundred studies whose labels experts have verified.

    python launch/refine_rates.py --run=runs/luvit-0123456789ab --verified=labels.csv --output=refined
    python launch/train.py --config=configs/luvit.py --config.rgn.rates=refined/rates.parquet

The table has study_id and a column of 1, 0 or blank for each finding; studies that the run was trained on are left out.
Prints by how much each category of cue and finding was moved, and writes rates.parquet (rates of the training studies,
findings that a report does not mention included) and refined.json. See repgls_jax/train/refine.py for what is done, and
docs/rgn.md for how far to trust it.
"""

import pathlib
import sys

from absl import app, flags, logging

from repgls_jax.train import refine, verified
from repgls_jax.train.journal import Journal

_RUN = flags.DEFINE_string("run", None, "folder of a LU-ViT run", required=True)
_VERIFIED = flags.DEFINE_string("verified", None, "CSV of verified labels", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_STEPS = flags.DEFINE_integer("steps", 500, "of the refinement", lower_bound=1)
_MOST = flags.DEFINE_integer("most", 20_000, "training films used, drawn at random from more", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of that and of the batches")
_NAME = 28  # characters of a finding's name in the table


def main(argv: list[str]) -> None:
    """Refines and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    config = refine.RefineConfig(steps=_STEPS.value, verified_size=64)
    run, table, output = (pathlib.Path(flag.value) for flag in (_RUN, _VERIFIED, _OUTPUT))
    try:
        result = verified.run(run, table, output, config, _MOST.value, _SEED.value, Journal(None, sys.stderr))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print("added to atanh(r), by category of cue; blank where no training film has one")
    print(" " * _NAME + "".join(f"{name[:14]:>16}" for name in result["groups"]))
    for k, finding in enumerate(result["findings"]):
        cells = [
            f"{moves[k]:+.2f}" if seen[k] else "" for moves, seen in zip(result["delta"], result["seen"], strict=True)
        ]
        print(f"{finding[:_NAME]:{_NAME}}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"loss on verified labels: {result['loss'][0]:.4f} at the start, {result['loss'][1]:.4f} at the end")


if __name__ == "__main__":
    app.run(main)
