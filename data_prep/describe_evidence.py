"""Counts what an evidence file says of a corpus: states, hedges, cues, sections, and findings that come together.

  python data_prep/describe_evidence.py --evidence=evidence.parquet --output=statistics

Writes statistics.json and statistics.html into the folder, and prints the main table. --studies tells how many reports
were read, which the file cannot: a report without evidence has no row.
"""

import pathlib
import sys

from absl import app, flags

from repgls_jax.evidence import describe, describe_page

_EVIDENCE = flags.DEFINE_string("evidence", None, "Parquet file of evidence.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_STUDIES = flags.DEFINE_integer("studies", None, "Reports that were read.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Writes the statistics and prints the main table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    try:
        statistics = describe.describe(pathlib.Path(_EVIDENCE.value), _STUDIES.value)
        describe_page.write(pathlib.Path(_OUTPUT.value), statistics)
    except (ValueError, OSError) as error:
        sys.exit(f"describe_evidence: {error}")
    print(describe_page.text(statistics))


if __name__ == "__main__":
    app.run(main)
