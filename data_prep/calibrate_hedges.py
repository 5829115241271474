"""Calibrates hedges on a site's labels: how often a finding is there when it is worded so.

  python data_prep/calibrate_hedges.py --evidence=evidence.parquet --labels=labels.csv --output=calibration

The labels have the column study_id and one for each finding, by its name or an alias, with 1, 0 or blank for unknown.
Writes lexicon_override.csv, by_finding.csv, calibration.json and calibration.html, and prints a table. The override
gives the extractor this site's certainties:

  python data_prep/extract_uncertainty.py --reports=reports.csv --output=evidence.parquet \\
      --backend=lexicon --lexicon_override=calibration/lexicon_override.csv
"""

import pathlib
import sys

from absl import app, flags

from repgls_jax.evidence import calibrate_page

_EVIDENCE = flags.DEFINE_string("evidence", None, "Evidence file, made without an override.", required=True)
_LABELS = flags.DEFINE_string("labels", None, "CSV of labels.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "Draws of studies for intervals.", lower_bound=40)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the folds and the draws.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Runs the calibration and prints it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    evidence, labels, output = (pathlib.Path(f.value) for f in (_EVIDENCE, _LABELS, _OUTPUT))
    try:
        result = calibrate_page.run(evidence, labels, output, _REPLICATES.value, _SEED.value)
    except (ValueError, OSError) as error:
        sys.exit(f"calibrate_hedges: {error}")
    print(calibrate_page.text(result))


if __name__ == "__main__":
    app.run(main)
