"""Predicts findings on films: a table with probability, rate and call for each film and finding.

    python launch/predict.py --model=export FILM.png FOLDER --output=predictions.csv
    python launch/predict.py --model=runs/luvit-0123456789ab FOLDER --output=predictions.parquet --overlays=DIR

The model is the folder of a run, of its checkpoints, or of an export. Films are PNG, JPEG or DICOM files, or folders of
them. The output is CSV, JSON or Parquet by its ending. Files that cannot be used are skipped, listed in
OUTPUT.skipped.csv, and end the program with 3; broken off (130), what was done is in OUTPUT.partial.

Not a medical device.
"""

import pathlib
import signal
import sys
import time
from typing import NoReturn

from absl import app, flags, logging

from repgls_jax.predict import inputs, tables
from repgls_jax.predict import run as predict
from repgls_jax.results import operating

SKIPPED, STOPPED = 3, 130  # exit codes
_MODEL = flags.DEFINE_string("model", None, "folder of a run, of its checkpoints, or of an export", required=True)
_OUTPUT = flags.DEFINE_string("output", None, f"file to write, ending in {', '.join(tables.WRITERS)}", required=True)
_OVERLAYS = flags.DEFINE_string("overlays", None, "folder for a picture of each film with maps of the findings called")
_BATCH = flags.DEFINE_integer("batch_size", 64, "films at a time", lower_bound=1, upper_bound=4096)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "of a run: latest, best, or a step")
_RULE = flags.DEFINE_string("rule", operating.MAIN, f"whose thresholds decide a call: {', '.join(operating.RULES)}")
_THRESHOLDS = flags.DEFINE_string("thresholds", None, "JSON file of thresholds, in the place of the model's own")


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """To the error stream, at once."""
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    """Predicts; faults of the settings end the program with their message."""
    logging.set_verbosity(logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)
    which = int(_CHECKPOINT.value) if _CHECKPOINT.value.isdigit() else _CHECKPOINT.value
    output = pathlib.Path(_OUTPUT.value)
    began = time.monotonic()
    try:
        tables.writer_for(output)
        paths, left_out = inputs.find(argv[1:])
        model = predict.load(_MODEL.value, which)
        frame = predict.frame_of(model, _RULE.value, pathlib.Path(_THRESHOLDS.value) if _THRESHOLDS.value else None)
        say(f"{len(paths):,} files" + (f"; {left_out:,} others in the folders left out" if left_out else ""))
        output.parent.mkdir(parents=True, exist_ok=True)
        overlays = pathlib.Path(_OVERLAYS.value) if _OVERLAYS.value else None
        counts = predict.run(model, paths, output, frame, say, overlays, _BATCH.value)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        say(f"broken off; what was done is in {output}.partial")
        raise SystemExit(STOPPED) from None
    seconds = time.monotonic() - began
    say(
        f"{output}: {counts['films']:,} films in {seconds:.1f} s, {60 * counts['films'] / seconds:,.0f} a minute; "
        f"{counts['skipped']:,} skipped, {counts['warned']:,} unlike the training films"
    )
    if counts["skipped"]:
        raise SystemExit(SKIPPED)


if __name__ == "__main__":
    app.run(main)
