"""Where a trained LU-ViT looks on the films of a build: maps, overlays, scores, and a page with all of it."""

import base64
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from repgls_jax import findings as findings_lib
from repgls_jax.data import shards
from repgls_jax.data.build import SHARDS
from repgls_jax.models import luvit
from repgls_jax.results import template
from repgls_jax.saliency import gallery, maps, regions, scoring, summary
from repgls_jax.trained import Trained

CHOOSING = "valid"  # the split on which shares of the film are chosen, for scores on another one
PAGE, SCORES, TABLES, MAPS, SHEET, OVERLAYS = (
    "saliency.html",
    "scores.json",
    "scores.md",
    "maps.npz",
    "sheet.png",
    "overlays",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
      split: whose films are explained.
      findings: names; none for all.
      methods: see :func:`maps.parse`.
      limit: films that are scored, drawn at random; 0 scores all.
      draw: films whose maps and overlays are kept.
      batch_size: films at a time.
      replicates: bootstraps over patients.
      seed: of every choice.
    """

    split: str = "test"
    findings: tuple[str, ...] = ()
    methods: tuple[str, ...] = tuple(maps.METHODS)
    limit: int = 0
    draw: int = 12
    batch_size: int = 16
    replicates: int = 1000
    seed: int = 0


def run(
    trained: Trained, build: pathlib.Path, output: pathlib.Path, settings: Settings, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Explains films of a build and writes what :data:`PAGE` and its neighbours name.

    Args:
      trained: of :func:`repgls_jax.trained.load`.
      build: folder of the data, with ``shards``.
      output: folder to write to; must exist.
      settings: what is asked for.
      say: told of the result.

    Returns:
      The scores of :func:`summary.summarise`; None where the build does not say where findings are.

    Raises:
      FileNotFoundError: no such build.
      ValueError: the model does not fit the build, or a setting is out of range.
    """
    vocabulary = shards.vocabulary(build / SHARDS)
    findings_lib.require_same(vocabulary.findings, trained.vocabulary.findings, trained.where)
    images = shards.Images(build / SHARDS, settings.split)
    luvit.require_input(trained.input, images.dtype, images.shape[0], trained.where)
    wanted = [vocabulary.index(name) for name in settings.findings or vocabulary.findings]
    made = scoring.Explainer.of(trained.model, trained.params, settings.methods, batch_size=settings.batch_size)
    marked = _regions(build, settings.split)
    results = None
    if marked is not None:
        results = _scores(made, build, wanted, settings, vocabulary.findings)
    notes = _notes(results, settings)
    if results is not None:
        titles = _titles(made.methods)
        (output / SCORES).write_text(json.dumps(results, indent=1, allow_nan=False))
        (output / TABLES).write_text(summary.markdown(results, titles, notes))
        say(_brief(results, titles))
    drawn = scoring.draw(np.arange(len(images)) if marked is None else marked.films, settings.draw, settings.seed)
    shown = images.read(drawn)
    found = made.explain(shown)
    masks = np.zeros((len(drawn), len(vocabulary), 1, 1), bool) if marked is None else marked.read(drawn)
    np.savez_compressed(
        output / MAPS,
        example=drawn,
        findings=np.array(vocabulary.findings),
        probability=found["probability"],
        rate=found["rate"],
        **{f"map_{name}": values for name, values in found["maps"].items()},
    )
    gallery.overlays_of(output / OVERLAYS, drawn, shown, found, masks, wanted, vocabulary.findings)
    chosen = gallery.examples(made, marked, wanted, images, settings.draw, settings.seed)
    if not chosen:  # regions are known, but none of these findings
        chosen = gallery.examples(made, None, wanted, images, settings.draw, settings.seed)
    sheet = gallery.sheet(made, marked, chosen, images, vocabulary.findings)
    (output / SHEET).write_bytes(sheet)
    _page(output / PAGE, trained, results, notes, sheet, made.methods, settings)
    say(f"page: {output / PAGE}")
    return results


def _regions(build: pathlib.Path, split: str) -> regions.Regions | None:
    """Where findings are; None where the build does not say of any film of the split."""
    found = regions.Regions(build, split)
    return found if len(found.films) else None


def _titles(methods: Sequence[str]) -> dict[str, str]:
    return {name: maps.title(name) for name in methods} | regions.CONTROLS


def _scores(
    made: scoring.Explainer, build: pathlib.Path, wanted: list[int], settings: Settings, names: tuple[str, ...]
) -> dict[str, Any] | None:
    """Scores on the split, with shares chosen on another one where that has regions."""
    priors, kinds = regions.priors(build)
    own = scoring.split(made, build, settings.split, wanted, priors, settings.seed, settings.limit)
    if own is None:
        return None
    other = None
    if settings.split != CHOOSING:
        other = scoring.split(made, build, CHOOSING, wanted, priors, settings.seed, settings.limit)
    shares = summary.choose_shares(own if other is None else other, len(names))
    results = summary.summarise(own, shares, names, settings.replicates, settings.seed)
    chosen = settings.split if other is None else CHOOSING
    priors_of = {names[k]: kinds[k] for k in wanted if names[k] in results["findings"]}
    return results | {"split": settings.split, "shares_chosen_on": chosen, "priors": priors_of}


def _notes(results: Mapping[str, Any] | None, settings: Settings) -> list[str]:
    """What a reader must know to read the tables."""
    if results is None:
        return ["The build does not say where findings are: there is nothing to score the maps against."]
    whole, chosen = results["mean"], results["shares_chosen_on"]
    said = [
        f"{whole['n']:,} pairs of a film and a finding that it shows, of {whole['patients']:,} patients, "
        f"{settings.split} split; [low, high]: {results['level']:.0%} interval, {results['replicates']:,} bootstraps "
        "over patients.",
        "IoU, best fixed share: the map's highest pixels, a share of the film that is the best for this row and "
        f"finding on the {chosen} split"
        + (", the very films that are scored: too favourable to every row." if chosen == settings.split else "."),
        "Random: noise on the grid of patches. Mean training mask: where the finding tends to be, without looking at "
        "the film.",
    ]
    odd = {kind: [name for name, of in results["priors"].items() if of == kind] for kind in ("all", "centre")}
    if odd["all"]:
        said.append(f"Too few training masks for their own mean, so that of all findings: {', '.join(odd['all'])}.")
    if odd["centre"]:
        said.append("The training split has no regions: the prior is a Gaussian in the middle of the film.")
    empty = {row: entry["empty"] for row, entry in whole["rows"].items() if entry["empty"]}
    if empty:
        counts = ", ".join(f"{row} {count:,}" for row, count in empty.items())
        said.append(f"Maps that are zero everywhere, scored as chance: {counts}.")
    return said


def _brief(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The means for the terminal."""
    lines = [f"{'':24}" + "".join(f"{metric:>10}" for metric in summary.METRICS)]
    for row, title in titles.items():
        entry = results["mean"]["rows"][row]
        lines.append(f"{title:24}" + "".join(f"{entry[metric]['value']:>10.3f}" for metric in summary.METRICS))
    return "\n".join(lines)


def _page(
    path: pathlib.Path,
    trained: Trained,
    results: Mapping[str, Any] | None,
    notes: Sequence[str],
    sheet: bytes,
    methods: Sequence[str],
    settings: Settings,
) -> None:
    """The page, whole or not at all."""
    tables = [] if results is None else summary.tables(results, _titles(methods)).items()
    text = template.load("repgls_jax.saliency", "page.html").render(
        title="Where the network looks",
        lead=f"Films of the {settings.split} split, explained by {len(methods)} methods; {trained.source['name']}.",
        notes=notes,
        tables=[{"title": summary.TITLES[metric], "rows": rows} for metric, rows in tables],
        sheet=Markup("data:image/png;base64," + base64.b64encode(sheet).decode()),
    )
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
