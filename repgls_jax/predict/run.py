"""The work of launch/predict.py: films through a model into a table."""

import json
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from repgls_jax import trained
from repgls_jax.exports import stablehlo
from repgls_jax.predict import inputs, tables
from repgls_jax.predict.overlays import Overlays
from repgls_jax.results import operating
from repgls_jax.train import checkpoint
from repgls_jax.train.journal import duration

Model = trained.Trained | stablehlo.Program
Say = Callable[[str], None]
_EVERY = 5.0  # seconds between two lines of progress
_SHOWN = 20  # skipped files and odd films that are told of one by one


def load(path: str, which: checkpoint.Which = "latest") -> Model:
    """A model to predict with: of a run, its checkpoints, or the forms native and stablehlo of an export.

    Raises:
      FileNotFoundError, ValueError: as :func:`repgls_jax.trained.load` and :func:`repgls_jax.exports.stablehlo.load`.
    """
    folder = pathlib.Path(path)
    part = folder / "stablehlo"
    if stablehlo.is_stablehlo(folder):
        return stablehlo.load(folder)
    if stablehlo.is_stablehlo(part) and not (folder / trained.NATIVE).exists():
        return stablehlo.load(part)
    return trained.load(path, which=which)


def frame_of(model: Model, rule: str, thresholds: pathlib.Path | None) -> tables.Frame:
    """Findings and thresholds of a table.

    Args:
      model: from :func:`load`.
      rule: whose thresholds decide a call.
      thresholds: file of launch/evaluate.py's form, in the place of the model's own; None for those.

    Raises:
      ValueError: no such rule, or the file is not of that form.
    """
    own = model.thresholds
    if thresholds is not None:
        try:
            own = json.loads(thresholds.read_text())
        except ValueError as error:
            raise ValueError(f"{thresholds} is not JSON: {error}") from None
        own = operating.require(own, model.vocabulary.findings, str(thresholds))
    if own is not None and rule not in own:
        raise ValueError(f"rule {rule!r} has no thresholds; expected one of {', '.join(own)}")
    findings = model.vocabulary.findings
    values = tuple(own[rule][finding] if own is not None else None for finding in findings)
    about = {"source": dict(model.source), "vocabulary": model.vocabulary.name, "rule": rule if own else None}
    return tables.Frame(findings, values, about)


def run(
    model: Model,
    paths: Sequence[pathlib.Path],
    output: pathlib.Path,
    frame: tables.Frame,
    say: Say,
    overlays: pathlib.Path | None = None,
    batch_size: int = 64,
) -> dict[str, int]:
    """Predicts and writes the table.

    Args:
      model: from :func:`load`.
      paths: files, from :func:`repgls_jax.predict.inputs.find`.
      output: file to write; replaced when all is done. Broken off, what was done is in OUTPUT.partial. Files that could
        not be used are listed in OUTPUT.skipped.csv, which is only there if there are any.
      frame: from :func:`frame_of`.
      say: told of progress, of files that are skipped and of odd films.
      overlays: folder for pictures; None for none.
      batch_size: films at a time.

    Returns:
      {"films", "skipped", "warned"}.

    Raises:
      ValueError: the output's ending is unknown, or overlays cannot be drawn of this model.
    """
    make = tables.writer_for(output)
    drawer = None
    if overlays is not None:
        if not isinstance(model, trained.Trained):
            raise ValueError(
                f"{model.where} holds no weights to draw overlays by; name a run, or the export's native part"
            )
        drawer = Overlays(overlays, model, frame)
    if model.reference is None:
        say("the model does not tell how its training films look (an export of launch/export.py does): none is checked")
    read = inputs.reader(model.input, model.preprocessing, model.reference)
    counts = {"films": 0, "skipped": 0, "warned": 0}
    skipped: list[tuple[str, str]] = []
    partial = output.with_name(output.name + ".partial")
    began = told = time.monotonic()
    writer = make(partial, frame)
    try:
        for batch in inputs.batches(paths, read, batch_size):
            good = [film for film in batch if film.image is not None]
            _tell(batch, counts, say)
            skipped += [(_text(film.path), film.said) for film in batch if film.image is None]
            if good:
                images = np.stack([film.image for film in batch if film.image is not None])
                probability, rate = predict(model, images, batch_size)
                rows = [
                    tables.Row(_text(film.path), p, r, film.said)
                    for film, p, r in zip(good, probability, rate, strict=True)
                ]
                writer.write(rows)
                if drawer is not None:
                    drawer.draw(good, images, probability)
            done = counts["films"] + counts["skipped"]
            if time.monotonic() - told > _EVERY:
                told = time.monotonic()
                say(_progress(done, len(paths), told - began))
    finally:
        writer.close()
        tables.write_skipped(output.with_name(output.name + tables.SKIPPED), skipped)
    partial.replace(output)
    return counts


def predict(model: Model, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and rates [n, c] of n <= ``batch_size`` images; padded, so that only one shape is compiled."""
    blank = np.zeros((batch_size - len(images), *images.shape[1:]), images.dtype)
    probability, rate = model.forward(np.concatenate([images, blank]))
    return np.asarray(probability)[: len(images)], np.asarray(rate)[: len(images)]


def _tell(batch: Sequence[inputs.Film], counts: dict[str, int], say: Say) -> None:
    for film in batch:
        kind = "skipped" if film.image is None else "warned" if film.said else ""
        counts["films"] += film.image is not None
        if kind:
            counts[kind] += 1
            if counts[kind] <= _SHOWN:
                say(f"{'skipped' if kind == 'skipped' else 'odd film'}: {_text(film.path)}: {film.said}")
            elif counts[kind] == _SHOWN + 1:
                say(f"more {'files are skipped' if kind == 'skipped' else 'films are odd'}; only counted from here on")


def _progress(done: int, total: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    left = duration((total - done) / max(rate, 1e-9))
    return f"{done:,}/{total:,} ({done / total:.0%})  {60 * rate:,.0f} films a minute  {left} left"


def _text(path: pathlib.Path) -> str:
    """A path as text that can be written down, whatever bytes are in its name."""
    return str(path).encode("utf-8", "backslashreplace").decode()
