"""Builds a data set: image shards, reports and a manifest (see repgls_jax/data/build.py).

The phantom, which needs no data:
  python data_prep/build.py --dataset=phantom --output=runs/data/phantom --count=2000 --image_size=64

A folder with images and a CSV or Parquet table:
  python data_prep/build.py --dataset=table --source=DIR --output=DIR --image_size=224 --findings=chexpert
      --columns=image=image224,patient=patientid,report=clinical_notes

On many machines that share a file system (extra "beam"; any runner of Apache Beam):
  python data_prep/build.py --dataset=table --source=DIR --output=DIR --beam="--runner=FlinkRunner --flink_master=..."

A build that was interrupted goes on when the same command is given again.

Further options of a data set are given as --option=name=value, with value in JSON or else taken as text:
  --option=difficulty=2 --option=max_megapixels=32
"""

import inspect
import json
import pathlib
from typing import Any

from absl import app, flags, logging

from repgls_jax import data
from repgls_jax.data import beam

_DATASET = flags.DEFINE_string("dataset", "phantom", f"{', '.join(data.DATASETS)}, or package.module:function")
_OUTPUT = flags.DEFINE_string("output", None, "folder to write", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a build made from something else")
_BEAM = flags.DEFINE_string("beam", None, "build with Apache Beam; options of its pipeline, such as --runner=...")
_WORKERS = flags.DEFINE_integer("workers", None, "processes; one per core by default", lower_bound=1)
# None: left to the data set's own default, and not passed to data sets that lack the option.
_OPTIONS = {
    "image_size": flags.DEFINE_integer("image_size", None, "side of the images in pixels"),
    "seed": flags.DEFINE_integer("seed", None, "of the phantom, or of the split of a table's patients"),
    "count": flags.DEFINE_integer("count", None, "phantom: number of studies"),
    "source": flags.DEFINE_string("source", None, "table: folder that holds the images and the table"),
    "table": flags.DEFINE_string("table", None, "table: the CSV or Parquet file, relative to --source"),
    "findings": flags.DEFINE_string("findings", None, "table: vocabulary"),
    "ignore": flags.DEFINE_list("ignore", None, "table: finding names of a list column to drop"),
}
_COLUMNS = flags.DEFINE_list("columns", None, "table: role=column or finding=column; 'role=' for none")
_OPTION = flags.DEFINE_multi_string("option", [], "name=value, for the other options of the data set")


def options() -> dict[str, Any]:
    """The options given on the command line.

    Raises:
      ValueError: an entry of --columns or --option is not name=value.
    """
    given: dict[str, Any] = {name: flag.value for name, flag in _OPTIONS.items() if flag.value is not None}
    if _COLUMNS.value:
        given["columns"] = dict(_pair("columns", entry) for entry in _COLUMNS.value)
    for entry in _OPTION.value:
        name, value = _pair("option", entry)
        try:
            given[name] = json.loads(value)
        except json.JSONDecodeError:
            given[name] = value
    return given


def _pair(flag: str, entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals or not name:
        raise ValueError(f"--{flag} holds {entry!r}; expected name=value")
    return name.strip(), value.strip()


def summary(manifest: dict[str, Any]) -> str:
    """A build in a few lines; quarantined images by reason."""
    lines = [f"vocabulary {manifest['vocabulary']['name']}, images of {manifest['image_size']} pixels"]
    for split, counts in manifest["counts"].items():
        lines.append(f"  {split:6}" + "".join(f"{n:8} {what}" for what, n in counts.items()))
    reasons: dict[str, int] = {}
    for item in manifest["quarantine"]["items"]:
        reasons[item["reason"]] = reasons.get(item["reason"], 0) + 1
    lines.append(f"  quarantined: {manifest['quarantine']['count']}")
    lines += [f"    {n} x {reason}" for reason, n in sorted(reasons.items())]
    lines += [f"  left out: {n} x {why}" for why, n in manifest["source"].get("left_out", {}).items()]
    unused = manifest["source"].get("unused_columns")
    return "\n".join(lines + ([f"  columns not used: {', '.join(unused)}"] if unused else []))


def main(argv: list[str]) -> None:
    """Builds and prints a summary; faults of the input or the disk end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # TFDS's own lines would break the progress bar
    try:
        try:
            inspect.signature(data.dataset(_DATASET.value)).bind(**options())
        except TypeError as error:  # an option that the data set lacks, or one that it needs
            raise ValueError(f"data set {_DATASET.value!r}: {error}") from None
        manifest = data.build(
            _DATASET.value,
            _OUTPUT.value,
            overwrite=_OVERWRITE.value,
            progress=True,
            workers=_WORKERS.value,
            engine=None if _BEAM.value is None else beam.engine(_BEAM.value),
            **options(),
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from here") from None
    print(summary(manifest))
    print(f"written to {pathlib.Path(_OUTPUT.value)}")


if __name__ == "__main__":
    app.run(main)
