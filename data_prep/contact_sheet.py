r"""Draws a contact sheet of the phantom: films, lesion masks in colour, and the reports beside them.

python data_prep/contact_sheet.py --output=sheet.png --image_size=128 --count=12 --seed=0
"""

import pathlib
import textwrap
import time

import matplotlib
import numpy as np
from absl import app, flags, logging
from matplotlib import figure, layout_engine, patches

from repgls_jax import phantom
from repgls_jax.findings import CHEXPERT

_OUTPUT = flags.DEFINE_string("output", "sheet.png", "PNG file to write.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 128, "Side of the films in pixels.", lower_bound=64, upper_bound=1024)
_COUNT = flags.DEFINE_integer("count", 12, "Number of studies.", lower_bound=1, upper_bound=200)
_FIRST = flags.DEFINE_integer("first", 0, "Index of the first study.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the data set.", lower_bound=0)
_COLUMNS = flags.DEFINE_integer("columns", 2, "Studies in a row.", lower_bound=1, upper_bound=8)
_EVIDENCE = flags.DEFINE_enum("evidence", "image", ["image", "independent"], "What the reader's belief follows.")

_COLOURS = matplotlib.colormaps["tab20"](np.arange(len(CHEXPERT)))[:, :3]
_LINE, _LINES = 58, 19  # report text: characters in a line, lines that fit


def overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The film with every mask tinted in its finding's colour.

    Args:
      image: uint8 [h, w].
      masks: uint16 [h, w], bit k set where finding k is.

    Returns:
      float32 [h, w, 3] in [0, 1].
    """
    picture = np.repeat(image[..., None] / 255.0, 3, axis=-1)
    for k, colour in enumerate(_COLOURS):
        inside = ((masks >> np.uint16(k)) & 1).astype(bool)
        picture[inside] = 0.62 * picture[inside] + 0.38 * colour
    return picture.astype(np.float32)


def _lines(record: dict) -> str:
    sections = [f"{name.upper()}: {record[name]}" for name in ("findings", "impression") if record[name]]
    text = record["report"] or "\n".join(sections)
    lines = [part for line in text.split("\n") if line for part in textwrap.wrap(line, _LINE)]
    return "\n".join([*lines[: _LINES - 1], "..."] if len(lines) > _LINES else lines)


def draw(records: list[dict], columns: int) -> figure.Figure:
    """The contact sheet of ``records``, ``columns`` studies in a row."""
    rows = -(-len(records) // columns)
    sheet = figure.Figure(figsize=(8.6 * columns, 2.6 * rows), layout=layout_engine.ConstrainedLayoutEngine(h_pad=0.1))
    axes = np.atleast_2d(sheet.subplots(rows, 3 * columns, width_ratios=[1.0, 1.0, 1.35] * columns))
    for axis in axes.ravel():
        axis.set_axis_off()
    for i, record in enumerate(records):
        film, tinted, text = axes[i // columns, 3 * (i % columns) : 3 * (i % columns) + 3]
        film.imshow(record["image"], cmap="gray", vmin=0, vmax=255)
        film.set_title(
            f"{record['study_id']} {record['patient_id']} {record['view']} reader {record['reader']}", fontsize=7
        )
        tinted.imshow(overlay(record["image"], record["masks"]))
        drawn = [k for k in range(1, len(CHEXPERT)) if record["truth"][k]]
        labels = [
            f"{CHEXPERT.findings[k]} {record['contrast'][k]:.2f} (belief {record['belief'][k]:.2f})" for k in drawn
        ]
        handles = [patches.Patch(color=tuple(_COLOURS[k]), label=label) for k, label in zip(drawn, labels, strict=True)]
        if handles:
            tinted.legend(handles=handles, fontsize=4.5, loc="lower left", framealpha=0.55, borderpad=0.3)
        text.text(0, 1, _lines(record), fontsize=6.2, va="top", family="monospace", transform=text.transAxes)
    return sheet


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a --flag")
    output = pathlib.Path(_OUTPUT.value)
    if output.suffix != ".png":
        raise app.UsageError(f"--output is {output}; expected a file name that ends in .png")
    config = phantom.PhantomConfig(image_size=_IMAGE_SIZE.value, seed=_SEED.value, evidence=_EVIDENCE.value)
    start = time.perf_counter()
    records = [phantom.generate(config, _FIRST.value + i) for i in range(_COUNT.value)]
    seconds = time.perf_counter() - start
    logging.info("made %d studies at %.0f a second on one core", len(records), len(records) / seconds)
    draw(records, _COLUMNS.value).savefig(output, dpi=130)
    logging.info("wrote %s", output)


if __name__ == "__main__":
    app.run(main)
