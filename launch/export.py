"""Exports a trained LU-ViT, each form read again in a fresh process and compared with the checkpoint.

    python launch/export.py --run=runs/luvit-0123456789ab --output=export
    python launch/export.py --run=RUN --output=DIR --formats=native,huggingface,stablehlo --checkpoint=best

The folder gets its name only when everything in it was compared; manifest.json holds the comparisons.
"""

import pathlib

import jax
from absl import app, flags, logging

from repgls_jax.exports import compare, job
from repgls_jax.train.journal import Journal

_RUN = flags.DEFINE_string("run", None, "folder of a LU-ViT run", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder to make", required=True)
_FORMATS = flags.DEFINE_list("formats", ["native", "stablehlo"], f"some of {', '.join(job.FORMATS)}")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best (of the validation), or a step")


def main(argv: list[str]) -> None:
    """Exports; what cannot be exported ends the program with its message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")  # the comparison is one in float32
    which = int(_CHECKPOINT.value) if _CHECKPOINT.value.isdigit() else _CHECKPOINT.value
    journal = Journal()
    try:
        manifest = job.run(pathlib.Path(_RUN.value), pathlib.Path(_OUTPUT.value), _FORMATS.value, journal, which)
    except (ValueError, OSError, compare.DiffersError) as error:
        raise SystemExit(f"error: {error}") from None
    size = sum(file["bytes"] for file in manifest["files"].values())
    journal.say(f"{_OUTPUT.value}: {len(manifest['files'])} files, {size:,} bytes, step {manifest['source']['step']}")


if __name__ == "__main__":
    app.run(main)
