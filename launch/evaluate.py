"""Evaluates a trained LU-ViT on a split: predictions.parquet, metrics.json, table.md and report.html.

python launch/evaluate.py --run=runs/luvit-0123456789ab --split=test --output=results

Several processes, started as for launch/train.py, share the predicting.
"""

import pathlib

from absl import app, flags, logging

from repgls_jax import distributed, evaluate

_RUN = flags.DEFINE_string("run", None, "folder of a LU-ViT run", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which images")
_BATCH = flags.DEFINE_integer("batch_size", 128, "images at a time", lower_bound=1)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "bootstrap replicates; 0 for no intervals", lower_bound=0)
distributed.define_flags()


def main(argv: list[str]) -> None:
    """Evaluates; faults of the input end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    settings = {"batch_size": _BATCH.value, "replicates": _REPLICATES.value}
    with distributed.launched({**settings, "run": _RUN.value, "split": _SPLIT.value}):
        try:
            evaluate.run(pathlib.Path(_RUN.value), output, _SPLIT.value, settings, distributed.journal())
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    app.run(main)
