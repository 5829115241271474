"""Figures of the benchmark as SVG text, drawn by matplotlib without a display."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure

from repgls_jax.benchmark import arms as arms_lib
from repgls_jax.benchmark import scores, tables

_COLOURS = ("#0a6c74", "#c8571b", "#6a51a3", "#2f7d32", "#b03a6f", "#4d5a66", "#8a5a00", "#1f77b4", "#7f7f7f")
_SHOWN = ("hard", "u_ones", "u_ignore", "permuted", "expert", "rgn", "clean")  # in curves


def _svg(made: figure.Figure) -> str:
    # Text as text: small files, and searchable. A fixed salt, so that the same figure is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmark"}), io.StringIO() as buffer:
        made.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        text = buffer.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, columns: int) -> tuple[figure.Figure, list[Any]]:
    made = figure.Figure(figsize=(width, height))
    axes = made.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return made, list(axes)


def forest(rows: tables.Rows, halves: Sequence[str]) -> str:
    """AUROC of every arm less that of hard labels, with 95 % intervals over seeds, one panel a half."""
    founds = [{a: r for a, r in tables.of(rows, "main", h).items() if arms_lib.arms()[a].main} for h in halves]
    names = [a for a in arms_lib.arms() if any(a in found for found in founds) and a != "hard"]
    means = {a: np.mean([np.mean(tables.values(f, "auroc")[a]) for f in founds if a in f]) for a in names}
    names.sort(key=lambda a: float(means[a]))
    made, axes = _figure(10, 1.2 + 0.2 * len(names), len(halves))
    groups = list(arms_lib.GROUPS)
    for ax, half, found in zip(axes, halves, founds, strict=True):
        for y, arm in enumerate(names):
            if {arm, "hard"} <= set(found):
                d = tables.paired(found, "auroc", arm, "hard")
                colour = _COLOURS[groups.index(arms_lib.arms()[arm].group) % len(_COLOURS)]
                ax.plot(d.seeds, (y, y), color=colour, lw=1.5)
                ax.plot([d.value], [y], "o", color=colour, ms=4)
        ax.axvline(0, color="#888", lw=0.8)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set_title(f"reader's evidence: {half}", fontsize=9)
        ax.set_xlabel("mean AUROC less that of hard labels", fontsize=8)
        ax.grid(axis="x", color="#eee")
    return _svg(made)


def risk(rows: tables.Rows, halves: Sequence[str]) -> str:
    """Risk-coverage curves of some arms: mean over findings and seeds."""
    made, axes = _figure(9, 3.2, len(halves))
    for ax, half in zip(axes, halves, strict=True):
        found = tables.of(rows, "main", half)
        for i, arm in enumerate(a for a in _SHOWN if a in found):
            curve = np.mean([row["risk"] for row in found[arm]], axis=0)
            ax.plot(scores.COVERAGES, curve, label=arm, color=_COLOURS[i], lw=1.3)
        ax.set_xlabel("coverage: share of films, surest first", fontsize=8)
        ax.set_ylabel("share of wrong calls", fontsize=8)
        ax.set_title(f"reader's evidence: {half}", fontsize=9)
        ax.legend(fontsize=7, frameon=False)
    return _svg(made)


def calibration(rows: tables.Rows, halves: Sequence[str]) -> str:
    """ECE of every arm before (hollow) and after (full) temperature scaling on noisy validation labels."""
    founds = [{a: r for a, r in tables.of(rows, "main", h).items() if arms_lib.arms()[a].main} for h in halves]
    names = [a for a in arms_lib.arms() if any(a in found for found in founds)][::-1]
    made, axes = _figure(10, 1.2 + 0.2 * len(names), len(halves))
    for ax, half, found in zip(axes, halves, founds, strict=True):
        before, after = (tables.values(found, metric) for metric in ("ece", "ece_scaled"))
        for y, arm in enumerate(names):
            if arm in found:
                a, b = float(np.mean(before[arm])), float(np.mean(after[arm]))
                ax.plot((a, b), (y, y), color="#bbb", lw=1)
                ax.plot([a], [y], "o", color=_COLOURS[0], ms=4, mfc="white")
                ax.plot([b], [y], "o", color=_COLOURS[0], ms=4)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set_xlabel("ECE against the truth", fontsize=8)
        ax.set_title(f"reader's evidence: {half}", fontsize=9)
        ax.set_xlim(left=0)
        ax.grid(axis="x", color="#eee")
    return _svg(made)


def conditions(rows: tables.Rows, halves: Sequence[str], names: Sequence[str]) -> str:
    """Expert rates less hard labels and less shuffled rates, in every condition: means and ranges over seeds."""
    made, axes = _figure(10, 1.2 + 0.25 * len(names), len(halves))
    for ax, half in zip(axes, halves, strict=True):
        for y, name in enumerate(reversed(names)):
            found = tables.of(rows, name, half)
            for k, other in enumerate(("hard", "permuted")):
                if {"expert", other} <= set(found):
                    each = np.array(tables.paired(found, "auroc", "expert", other).each)
                    at = y + 0.12 - 0.24 * k
                    ax.plot((each.min(), each.max()), (at, at), color=_COLOURS[k], lw=1.2)
                    ax.plot([each.mean()], [at], "o", color=_COLOURS[k], ms=4, label=other if y == 0 else None)
        ax.axvline(0, color="#888", lw=0.8)
        ax.set_yticks(range(len(names)), list(reversed(names)) if ax is axes[0] else [""] * len(names))
        ax.set_title(f"reader's evidence: {half}", fontsize=9)
        ax.set_xlabel("AUROC of expert rates less that of hard labels (teal), shuffled rates (orange)", fontsize=8)
        ax.grid(axis="x", color="#eee")
    return _svg(made)


FIGURES: Mapping[str, str] = {
    "forest": "Mean AUROC of every arm less that of hard labels; 95 % intervals over seeds.",
    "risk": "Selective risk: wrong calls among the surest films, by distance from one half.",
    "calibration": "Expected calibration error before (hollow) and after (full) temperature scaling.",
    "conditions": "Expert rates less hard labels, and less shuffled rates, in every condition; range over seeds.",
}


def draw(name: str, rows: tables.Rows, halves: Sequence[str], names: Sequence[str]) -> str:
    """The figure ``name``, a key of :data:`FIGURES`."""
    if name == "conditions":
        return conditions(rows, halves, names)
    return {"forest": forest, "risk": risk, "calibration": calibration}[name](rows, halves)
