"""Reads reports and writes what they say of each finding, with a graded certainty, to evidence.parquet.

  python data_prep/extract_uncertainty.py --reports=reports.csv --output=evidence.parquet \\
      --backend=lexicon --findings=union

The reports file (.csv or .parquet) has the columns study_id and findings, impression and/or report.
"""

import pathlib
import sys

from absl import app, flags

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import run as extract_lib

_REPORTS = flags.DEFINE_string("reports", None, "CSV or Parquet file of reports.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Parquet file to write.", required=True)
_BACKEND = flags.DEFINE_enum("backend", "lexicon", sorted(extract_lib.BACKENDS), "What reads the reports.")
_FINDINGS = flags.DEFINE_enum("findings", "union", sorted(findings_lib.VOCABULARIES), "Vocabulary of findings.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes; 1 reads in this process.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Runs the extraction and prints the counts."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    try:
        counts = extract_lib.extract(
            pathlib.Path(_REPORTS.value),
            pathlib.Path(_OUTPUT.value),
            findings_lib.vocabulary(_FINDINGS.value),
            backend=_BACKEND.value,
            log=lambda line: print(line, file=sys.stderr, flush=True),
            workers=_WORKERS.value,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"extract_uncertainty: {error}")
    for name, value in counts.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    app.run(main)
