"""Reads reports and writes what they say of each finding, with a graded certainty, to evidence.parquet.

  python data_prep/extract_uncertainty.py --reports=reports.csv --output=evidence.parquet \\
      --backend=lexicon --findings=union

Reports: a .csv or .parquet file with the columns study_id and findings, impression and/or report; the folder or .zip
of MIMIC-CXR's texts; the .tgz or folder of Open-i's XML files; or a folder or .zip of text files named by study.

  --backend=lexicon [--lexicon_override=FILE]                   rules, no model
  --backend=qwen --model=FOLDER [--certainty=tokens|stated]     a language model in this process, one GPU a worker
  --backend=server --endpoint=http://localhost:8000/v1 --model=NAME    an OpenAI-compatible server

A server that wants an API key gets it from the environment variable REPGLS_SERVER_KEY.

A run that was interrupted goes on when the same command is given again.
"""

import pathlib
import sys
from typing import Any

from absl import app, flags

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import backends
from repgls_jax.extraction import run as extract_lib

_REPORTS = flags.DEFINE_string("reports", None, "CSV or Parquet file, folder or archive of reports.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Parquet file to write.", required=True)
_BACKEND = flags.DEFINE_enum("backend", "lexicon", sorted(backends.BACKENDS), "What reads the reports.")
_FINDINGS = flags.DEFINE_enum("findings", "union", sorted(findings_lib.VOCABULARIES), "Vocabulary of findings.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes; 1 reads in this process.", lower_bound=1)
# Settings of the backends; one that is not given keeps the backend's default.
_OVERRIDE = flags.DEFINE_string("lexicon_override", None, "lexicon: table of cues calibrated on a site's labels.")
_MODEL = flags.DEFINE_string("model", None, "qwen: folder or Hugging Face name; server: name it is served under.")
_CERTAINTY = flags.DEFINE_enum(
    "certainty", None, ["tokens", "stated"], "qwen, server: p from the token probabilities or as the model states it."
)
_BATCH = flags.DEFINE_integer("batch_size", None, "qwen: reports in a batch.", lower_bound=1)
_ENDPOINT = flags.DEFINE_string("endpoint", None, "server: base address, as http://localhost:8000/v1.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", None, "server: requests at a time.", lower_bound=1)
_SEND = flags.DEFINE_bool(
    "send_reports_off_this_machine",
    None,
    "server: allow any address. Without it reports go only to this machine or to a private address of one's own "
    "network (10/8, 172.16/12, 192.168/16, fc00::/7). Data use agreements such as PhysioNet's forbid sending reports "
    "to third parties.",
)


def _settings() -> Any:
    given = {
        "lexicon_override": _OVERRIDE.value and pathlib.Path(_OVERRIDE.value),
        "model": _MODEL.value,
        "certainty": _CERTAINTY.value,
        "batch_size": _BATCH.value,
        "endpoint": _ENDPOINT.value,
        "concurrency": _CONCURRENCY.value,
        "send_reports_off_this_machine": _SEND.value,
    }
    return backends.settings_of(_BACKEND.value, {name: value for name, value in given.items() if value is not None})


def main(argv: list[str]) -> None:
    """Runs the extraction and prints the counts."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    if not _REPORTS.value or not _OUTPUT.value:
        raise app.UsageError("--reports or --output is empty; name a file")
    try:
        counts = extract_lib.extract(
            pathlib.Path(_REPORTS.value),
            pathlib.Path(_OUTPUT.value),
            findings_lib.vocabulary(_FINDINGS.value),
            backend=_BACKEND.value,
            log=lambda line: print(line, file=sys.stderr, flush=True),
            workers=_WORKERS.value,
            settings=_settings(),
        )
    except (ValueError, OSError) as error:
        sys.exit(f"extract_uncertainty: {error}")
    except KeyboardInterrupt:
        print("extract_uncertainty: interrupted; the same command goes on from what is finished", file=sys.stderr)
        sys.exit(130)
    for name, value in counts.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    app.run(main)
