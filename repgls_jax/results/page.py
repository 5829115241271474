"""The report page of a run, or of several side by side: one HTML file that opens anywhere, offline.

Everything is in the file: style and drawings are inline, there is no script, and its own security policy
forbids it to load anything. It shows metrics, curves, configuration and counts, films where a gallery is given,
and never the text of a report: of the arguments it reads numbers, the names of findings, and the settings in ``info``.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.results import charts, page_gallery, page_points, table, template

# Keys whose values would be report text; a page refuses them.
FORBIDDEN = frozenset({"report", "impression", "sentence", "text"})
LONGEST = 200  # characters of one setting
FEW = 10  # positives or negatives below which a finding's metrics are called unsure
SPLITS = ("train", "valid", "validation", "test")
# kind of curve -> its title, the metric shown beside it, and the names of its two axes.
CURVES = {
    "roc": ("ROC curve", "auroc", "fpr", "tpr"),
    "precision_recall": ("Precision-recall curve", "auprc", "recall", "precision"),
    "reliability": ("Reliability diagram", "ece", "mean", "share"),
}
_FALLS = frozenset({"brier", "ece"})  # lower is better


@dataclasses.dataclass(frozen=True)
class Run:
    """One column of the page.

    Attributes:
      name: what the run is called.
      results: from ``score.score``.
      history: rows of the training journal; "step" and any numeric values. "train/loss" and "valid/loss"
        share a chart.
      info: what was run: settings, seeds, counts, stages, reference labels. Nested dictionaries.
      rates: float [m] in (-1, 1), or None.
      rate_finding: int [m], each rate's finding as an index into the vocabulary; needed with ``rates``.
    """

    name: str
    results: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rates: np.ndarray | None = None
    rate_finding: np.ndarray | None = None


def _vocabulary(runs: Sequence[Run]) -> list[str]:
    """The findings that all runs share, in order."""
    if not runs:
        raise ValueError("there are no runs to show; pass at least one")
    names = list(runs[0].results["vocabulary"]["findings"])
    for run in runs[1:]:
        findings_lib.require_same(names, run.results["vocabulary"]["findings"], f"run {run.name!r}")
    return names


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What weakens the results: findings without both classes, with few of one, or with replicates left out."""
    said = []
    for finding in results["vocabulary"]["findings"]:
        row = results["findings"][finding]
        why, fewest = table.why_undefined(row), min(row["positives"], row["n"] - row["positives"])
        if row["n"] == 0:
            said.append(f"{finding}: no labelled image; it has no metrics.")
        elif why:
            said.append(f"{finding}: {why} among {row['n']:,} labelled images; AUROC and AUPRC are not defined.")
        elif fewest < FEW:
            kind = "positives" if fewest == row["positives"] else "negatives"
            left = results["bootstrap"]["replicates"] - row["auroc"]["replicates"]
            tail = f"; {left:,} bootstraps had one class and were left out" if left > 0 else ""
            said.append(f"{finding}: only {fewest} {kind} among {row['n']:,} labelled images{tail}.")
    return said


def _all_warnings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every warning once, with the names of its runs unless it holds for all."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for said in warnings(run.results):
            found.setdefault(said, []).append(run.name)
    return [{"text": said, "runs": names if len(names) < len(runs) else []} for said, names in found.items()]


def _headline(run: Run, colour: int) -> dict[str, Any]:
    results = run.results
    tiles = []
    for name, (title, _) in table.COLUMNS.items():
        entry = results["mean"][name]
        tiles.append(
            {
                "title": f"Mean {title}",
                "value": table.number(entry["value"]),
                "low": table.number(entry["low"]) if entry["low"] is not None and table.COLUMNS[name][1] else "",
                "high": table.number(entry["high"]),
                "over": entry["findings"],
                "falls": name in _FALLS,
            }
        )
    return {
        "name": run.name,
        "colour": colour % charts.COLOURS,
        "tiles": tiles,
        "images": results["images"],
        "patients": results["patients"],
        "notes": table.notes(results),
    }


def _forest_start(runs: Sequence[Run], names: Sequence[str]) -> float:
    """Left end of the AUROC axis: 0.5, or lower where an interval reaches below chance."""
    entries = [run.results["findings"][f]["auroc"] for run in runs for f in names]
    lows = [e["low"] if e["low"] is not None else e["value"] for e in entries if e["value"] is not None]
    return min([0.5, *(math.floor(low * 10) / 10 for low in lows)])


def _rows(run: Run, names: Sequence[str], start: float, colour: int) -> list[dict[str, Any]]:
    """The rows of one run's table; the last one is the mean."""
    entries = [(f, run.results["findings"][f]) for f in names] + [("", run.results["mean"])]
    made = []
    for row, (finding, entry) in zip(table.rows(run.results)[1:], entries, strict=True):
        area = entry["auroc"]
        known = area["value"] is not None
        forest = charts.interval(area["value"], area["low"], area["high"], start, colour) if known else ""
        prevalence = f"{entry['positives'] / entry['n']:.1%}" if finding and entry["n"] else ""
        cells = []
        for text in row[3:]:
            value, bracket, rest = text.partition(" ")
            cells.append({"value": value, "rest": bracket + rest})
        counts = {"name": row[0], "n": row[1], "positives": row[2], "prevalence": prevalence}
        made.append({**counts, "forest": forest, "cells": cells})
    return made


def _curve(runs: Sequence[Run], finding: str, kind: str) -> dict[str, Any]:
    """One small chart: every run's curve of one finding."""
    title, metric, x, y = CURVES[kind]
    points = [run.results["curves"][finding][kind] for run in runs]
    dots = kind == "reliability"
    lines = [charts.Line(p[x], p[y], i, runs[i].name, dots=dots) for i, p in enumerate(points) if p]
    values = [run.results["findings"][finding][metric]["value"] for run in runs]
    said = ", ".join(f"{run.name} {table.number(v)}" for run, v in zip(runs, values, strict=True))
    description = f"{title} of {finding}; {table.COLUMNS[metric][0]}: {said}"
    known = [p for p in points if p]
    limit = 1.0
    if dots and known:
        largest = max(v for p in known for v in (*p[x], *p[y]))
        limit = next(v for v in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if v >= largest - 1e-9)
    level = known[0]["prevalence"][0] if kind == "precision_recall" and known else None
    drawing = charts.square(lines, description, limit=limit, diagonal=kind != "precision_recall", level=level)
    shown = [{"value": table.number(v), "colour": i % charts.COLOURS} for i, v in enumerate(values)]
    return {"finding": finding, "values": shown, "svg": drawing}


def _split(key: str) -> tuple[str, str]:
    """("train", "loss") of "train/loss" or "train_loss"; ("", key) without a split in front."""
    for split in SPLITS:
        if key.startswith((f"{split}/", f"{split}_")):
            return split, key[len(split) + 1 :]
    return "", key


def _training(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Charts of the journal's numbers: loss first, then AUROC, then the rest by name."""
    found: dict[str, list[charts.Line]] = {}
    for i, run in enumerate(runs):
        keys = dict.fromkeys(k for row in run.history for k, v in row.items() if k != "step" and _numeric(v))
        for key in keys:
            split, name = _split(key)
            rows = [r for r in run.history if key in r and _numeric(r.get("step"))]
            # JSON has no NaN: null stands for a value that was not finite.
            values = [float(r[key]) if _numeric(r[key]) else math.nan for r in rows]
            steps = [float(r["step"]) for r in rows]
            held = split not in ("", "train")
            label = f"{run.name}, {split}" if split else run.name
            found.setdefault(name, []).append(charts.Line(steps, values, i, label, dashed=held))
    order = sorted(found, key=lambda k: ("loss" not in k, "auroc" not in k, k))
    made = []
    for name in order:
        missing = sum(not math.isfinite(v) for line in found[name] for v in line.y)
        description = f"{name} against the step: {'; '.join(line.name for line in found[name])}"
        mixed = len({line.dashed for line in found[name]}) > 1
        held = all(line.dashed for line in found[name])
        lines = found[name] if mixed else [dataclasses.replace(v, dashed=False) for v in found[name]]
        made.append({"name": name, "svg": charts.series(lines, description), "missing": missing, "held": held})
    return made


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _rates(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """Histograms of the rates of each run: all findings, then each finding that has some."""
    made = []
    for i, run in enumerate(runs):
        if run.rates is None:
            continue
        rates = np.asarray(run.rates, np.float64)
        index = None if run.rate_finding is None else np.asarray(run.rate_finding)
        if index is None or index.shape != rates.shape or rates.ndim != 1:
            shape = None if index is None else index.shape
            raise ValueError(
                f"rates have the shape {rates.shape}, rate_finding {shape}; expected one finding index per rate"
            )
        panels = []
        for name, values in [("All findings", rates), *((f, rates[index == j]) for j, f in enumerate(names))]:
            if values.size:
                zero = float(np.mean(values == 0))
                said = f"Histogram of {values.size:,} rates, {name}; {zero:.0%} are 0; median {np.median(values):.2f}"
                drawing = charts.histogram(values[values != 0], -1, 1, 40, said, i)
                panels.append({"name": name, "count": values.size, "zero": zero, "svg": drawing})
        made.append({"name": run.name, "panels": panels})
    return made


def _settings(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(dotted key, text) for every leaf of a nested dictionary.

    Raises:
      ValueError: a key of FORBIDDEN holds words.
    """
    if path and path[-1].lower() in FORBIDDEN and isinstance(value, (str, bytes, list, tuple)):
        raise ValueError(f"info holds {'.'.join(path)!r}; a page never shows report text, so leave it out")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _settings(inner, (*path, str(key)))
        return
    if isinstance(value, (list, tuple)):
        text = ", ".join(map(str, value))
    else:
        large = isinstance(value, int) and abs(value) >= 10_000
        text = f"{value:,}" if large else str(value)
    yield ".".join(path), text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _info(run: Run) -> list[dict[str, Any]]:
    """Groups of settings: one per nested dictionary at the top, and one for what stands outside of any."""
    loose = {k: v for k, v in run.info.items() if not isinstance(v, Mapping)}
    groups = ([("General", loose)] if loose else []) + [(k, v) for k, v in run.info.items() if isinstance(v, Mapping)]
    return [{"name": str(k).replace("_", " "), "rows": list(_settings(v))} for k, v in groups]


def render(
    title: str,
    runs: Sequence[Run],
    lead: str = "",
    gallery: page_gallery.Gallery | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML.

    Args:
      title: heading.
      runs: one or more runs that were scored on the same vocabulary.
      lead: a sentence below the heading.
      gallery: films of the first run.
      comparison: of the first two runs, from ``compare.paired``.

    Raises:
      ValueError: there is no run, the vocabularies differ, rates come without their findings, or ``info``
        holds a key of FORBIDDEN.
    """
    names = _vocabulary(runs)
    start = _forest_start(runs, names)
    return template.load("repgls_jax.results", "page.html").render(
        title=title,
        lead=lead,
        runs=[_headline(run, i) for i, run in enumerate(runs)],
        warnings=_all_warnings(runs),
        tables=[{"name": run.name, "rows": _rows(run, names, start, i)} for i, run in enumerate(runs)],
        columns=[name for name, _ in table.COLUMNS.values()],
        start=f"{start:g}",
        curves={kind: [_curve(runs, finding, kind) for finding in names] for kind in CURVES},
        points=[page_points.points(run, i) for i, run in enumerate(runs)],
        thresholds=[run.results["operating"]["thresholds"] for run in runs if "operating" in run.results],
        risk=page_points.risk(runs, names),
        strata=[{"name": run.name, "dimensions": page_points.strata(run, i)} for i, run in enumerate(runs)],
        comparison=page_points.comparison(comparison),
        gallery=page_gallery.rows(gallery),
        training=_training(runs),
        rates=_rates(runs, names),
        info=[{"name": run.name, "groups": _info(run)} for run in runs if run.info],
    )


def write_page(
    path: pathlib.Path,
    title: str,
    runs: Sequence[Run],
    lead: str = "",
    gallery: page_gallery.Gallery | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page of :func:`render` whole or not at all (a temporary file is renamed into place)."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(render(title, runs, lead, gallery, comparison), encoding="utf-8")
    temporary.replace(path)
