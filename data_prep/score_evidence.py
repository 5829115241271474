"""Scores an evidence file against labels of presence: precision, recall and F1 per finding.

  python data_prep/score_evidence.py --evidence=evidence.parquet --labels=labels.csv

The labels have a column of study ids and one for each finding, by its name or an alias, with 1, 0 or blank for unknown.
"""

import pathlib
import sys

from absl import app, flags

from repgls_jax.evidence import accuracy

_EVIDENCE = flags.DEFINE_string("evidence", None, "Evidence file.", required=True)
_LABELS = flags.DEFINE_string("labels", None, "CSV of labels.", required=True)


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    try:
        counts = accuracy.count(pathlib.Path(_EVIDENCE.value), pathlib.Path(_LABELS.value))
    except (ValueError, OSError) as error:
        sys.exit(f"score_evidence: {error}")
    print(accuracy.text(counts))


if __name__ == "__main__":
    app.run(main)
