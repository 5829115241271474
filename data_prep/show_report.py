r"""Shows reports with their evidence marked: which words name a finding, which cue decides, and what was overruled.

A sentence typed by hand, the first reports of a file, one study, and a page of the rows of an evidence file:

  python data_prep/show_report.py --text="No effusion. Possible pneumonia."
  python data_prep/show_report.py --reports=reports.csv --limit=5
  python data_prep/show_report.py --reports=reports.csv --study=s1
  python data_prep/show_report.py --reports=reports.csv --evidence=evidence.parquet --html=page.html

Without --evidence the lexicon reads the reports now. What is shown holds report text. NO_COLOR is respected.
"""

import os
import pathlib
import shutil
import sys

from absl import app, flags

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import studies, terminal, view_page

_REPORTS = flags.DEFINE_string("reports", None, "File, folder or archive of reports.")
_TEXT = flags.DEFINE_string("text", None, "A text to read, instead of --reports.")
_STUDY = flags.DEFINE_string("study", None, "Show this study only.")
_EVIDENCE = flags.DEFINE_string("evidence", None, "Show the rows of this Parquet file instead of reading now.")
_FINDINGS = flags.DEFINE_enum("findings", "union", sorted(findings_lib.VOCABULARIES), "Vocabulary, without --evidence.")
_HTML = flags.DEFINE_string("html", None, "Write a page here instead of showing the reports in the terminal.")
_LIMIT = flags.DEFINE_integer("limit", 20, "Reports shown without --study.", lower_bound=1, upper_bound=1_000)


def main(argv: list[str]) -> None:
    """Shows the reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    if (_TEXT.value is None) == (_REPORTS.value is None):
        raise app.UsageError("give either --reports or --text")
    if _TEXT.value is not None and (_STUDY.value or _EVIDENCE.value):
        raise app.UsageError("--text is read as it stands; --study and --evidence need --reports")
    if _HTML.value and not _HTML.value.endswith(".html"):
        raise app.UsageError("--html names a page to write, and must end in .html")
    try:
        if _REPORTS.value is not None:
            reports = studies.choose(pathlib.Path(_REPORTS.value), _STUDY.value, _LIMIT.value)
        else:
            reports = [studies.typed(_TEXT.value or "")]
        if _EVIDENCE.value:
            shown = studies.stored(reports, pathlib.Path(_EVIDENCE.value))
        else:
            shown = studies.live(reports, findings_lib.vocabulary(_FINDINGS.value))
        if _HTML.value:
            view_page.write(pathlib.Path(_HTML.value), shown)
            print(f"wrote {len(shown)} reports to {_HTML.value}; it holds report text, and only its owner can read it")
            return
    except (ValueError, OSError) as error:
        sys.exit(f"show_report: {error}")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that is not UTF-8
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    try:
        for study in shown:
            print("\n".join(terminal.lines(study, width, colour)), end="\n\n")
        print(terminal.LEGEND, flush=True)
    except BrokenPipeError:  # whoever reads on the other side, as "head" or "less", has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere


if __name__ == "__main__":
    app.run(main)
