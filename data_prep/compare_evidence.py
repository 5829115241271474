"""Compares two evidence files: states, certainties, and every difference.

  python data_prep/compare_evidence.py --first=lexicon.parquet --second=model.parquet --output=comparison

Writes differences.csv (study, finding, both states, certainties and cues; no report text), comparison.json and
comparison.html, and prints a table.
"""

import pathlib
import sys

from absl import app, flags

from repgls_jax.evidence import compare_page

_FIRST = flags.DEFINE_string("first", None, "Evidence file.", required=True)
_SECOND = flags.DEFINE_string("second", None, "Evidence file of the same reports.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)


def main(argv: list[str]) -> None:
    """Runs the comparison and prints it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    try:
        result = compare_page.run(*(pathlib.Path(f.value) for f in (_FIRST, _SECOND, _OUTPUT)))
    except (ValueError, OSError) as error:
        sys.exit(f"compare_evidence: {error}")
    print(compare_page.text(result))


if __name__ == "__main__":
    app.run(main)
