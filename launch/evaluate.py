"""Evaluates a trained LU-ViT: predictions.parquet, metrics.json, table.md, thresholds.json and a page, report.html.

    python launch/evaluate.py --run=runs/luvit-0123456789ab --output=results
    python launch/evaluate.py --run=runs/luvit-0123456789ab --against=runs/luvit-ba9876543210 --output=results
    python launch/evaluate.py --model=EXPORT --data=BUILD --evidence=evidence.parquet --output=results

A run is scored on a split of its own data; any checkpoint or export on any build whose findings it shares. Thresholds
are chosen on the validation split, unless the model or --thresholds brings some. --against scores a second run,
checkpoint or export on the same images, and writes the paired comparison.

Several processes, started as for launch/train.py, share the predicting.
"""

import dataclasses
import pathlib

from absl import app, flags, logging

from repgls_jax import distributed, evaluate, job
from repgls_jax.evaluation import sets

_RUN = flags.DEFINE_string("run", None, "folder of a LU-ViT run; its data is found beside it")
_MODEL = flags.DEFINE_string("model", None, "folder of a run, of checkpoints or of an export; needs --data")
_DATA = flags.DEFINE_string("data", None, "build to score --model on, of data_prep/build.py")
_EVIDENCE = flags.DEFINE_string("evidence", None, "evidence.parquet of that build's reports")
_AGAINST = flags.DEFINE_string("against", None, "a further run, checkpoint or export to compare with")
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which images")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "of a run: latest, best (by validation), or a step")
_THRESHOLDS = flags.DEFINE_string(
    "thresholds", "", "a thresholds.json; valid to choose them; empty takes the model's, else chooses"
)
_GROUPS = flags.DEFINE_string("groups", "", "CSV with study_id and columns of groups to score apart")
_BATCH = flags.DEFINE_integer("batch_size", 128, "images at a time", lower_bound=1)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "bootstrap replicates; 0 for no intervals", lower_bound=0)
_GALLERY = flags.DEFINE_integer("gallery", 12, "films of each kind on the page; 0 for none", 0, 200)
_SHOW_IDS = flags.DEFINE_bool("show_ids", False, "name image, study and patient of these films")
job.define_flags()


def _which(value: str) -> int | str:
    if value in ("latest", "best"):
        return value
    if not value.isdecimal():
        raise app.UsageError(f"--checkpoint={value}; expected latest, best or a step such as 500")
    return int(value)


def main(argv: list[str]) -> None:
    """Evaluates; faults of the input end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if (_RUN.value is None) == (_MODEL.value is None):
        raise app.UsageError("give either --run=RUN, or --model=PATH with --data=BUILD")
    if (_MODEL.value is None) != (_DATA.value is None) or (_EVIDENCE.value and not _DATA.value):
        raise app.UsageError("--model needs --data=BUILD, and --data and --evidence are for --model")
    logging.set_verbosity(logging.ERROR)
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    settings = evaluate.Settings(
        batch_size=_BATCH.value,
        replicates=_REPLICATES.value,
        checkpoint=_which(_CHECKPOINT.value),
        thresholds=_THRESHOLDS.value,
        groups=_GROUPS.value,
        gallery=_GALLERY.value,
        show_ids=_SHOW_IDS.value,
    )
    told = {
        **dataclasses.asdict(settings),
        "paths": [_RUN.value, _MODEL.value, _DATA.value, _EVIDENCE.value, _AGAINST.value],
        "split": _SPLIT.value,
    }
    with job.launched(told):
        try:
            _evaluate(output, dataclasses.asdict(settings))
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from None


def _evaluate(output: pathlib.Path, settings: dict) -> None:
    journal = distributed.journal()
    against = pathlib.Path(_AGAINST.value) if _AGAINST.value else None
    if _RUN.value:
        evaluate.run(pathlib.Path(_RUN.value), output, _SPLIT.value, settings, journal, against=against)
        return
    evidence = pathlib.Path(_EVIDENCE.value) if _EVIDENCE.value else None
    assert _MODEL.value and _DATA.value  # main has seen to it
    place = sets.place(pathlib.Path(_DATA.value), evidence)
    evaluate.model(pathlib.Path(_MODEL.value), place, output, _SPLIT.value, settings, journal, against)


if __name__ == "__main__":
    app.run(main)
