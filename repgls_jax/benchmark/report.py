"""Writes what the grid found: results.parquet, verdict.json, benchmark.md, benchmark.html and the figures as SVG."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup, escape

from repgls_jax import config as config_lib
from repgls_jax.benchmark import arms as arms_lib
from repgls_jax.benchmark import conditions as conditions_lib
from repgls_jax.benchmark import figures, grid, tables
from repgls_jax.results import template
from repgls_jax.train.journal import finite

_PARTS = {
    "AUROC, calibration, selective risk": (
        ("auroc", "rare_auroc", "auprc", "brier", "brier_scaled", "ece", "ece_scaled", "aurc"),
        "hard",
    ),
    "Strata: what the report says of the test film, and how common the finding is": (
        ("auroc", "frequent_auroc", "rare_auroc", "auroc_plain", "auroc_hedged", "auroc_blank"),
        "",
    ),
    "The second head: does the film tell which findings radiologists hedge on?": (
        ("auroc", "hedge_auroc", "hedge_spearman", "aurc", "aurc_rate"),
        "",
    ),
}


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a title, sentences, and tables with captions."""

    title: str
    lines: Sequence[str]
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]]


def write(
    output: pathlib.Path, rows: Sequence[Mapping[str, Any]], plan: grid.Plan, config: ml_collections.ConfigDict
) -> None:
    """Writes all of them to ``output``.

    Raises:
      ValueError: there is no run of the main condition.
    """
    if not any(row["condition"] == "main" and row["role"] == "test" for row in rows):
        raise ValueError("no run of the main condition is finished; its tables are what everything is compared with")
    table = pa.Table.from_pylist([dict(row) for row in rows])
    pq.write_table(table, output / "results.parquet")
    halves = tuple(h for h in conditions_lib.HALVES if any(row["half"] == h for row in rows))
    names = tuple(c for c in conditions_lib.CONDITIONS if any(row["condition"] == c for row in rows))

    def load(cell: str) -> np.ndarray:
        return grid.draws(plan.root, cell)

    claims = {half: tables.claims(rows, half, load) for half in halves}
    record = {half: {m: _plain(c) for m, c in by.items()} for half, by in claims.items()}
    (output / "verdict.json").write_text(json.dumps(finite(record), indent=1, allow_nan=False))
    (output / "figures").mkdir(exist_ok=True)
    drawn = {}
    for name in figures.FIGURES:
        if name != "conditions" or len(names) > 1:
            drawn[name] = figures.draw(name, rows, halves, names)
            (output / "figures" / f"{name}.svg").write_text(drawn[name])
    made = [_settings(rows, plan), *(_half(rows, half, claims[half], names) for half in halves), _tuning(rows)]
    (output / "benchmark.md").write_text(_markdown(made, drawn))
    page = template.load("repgls_jax.benchmark", "page.html")
    (output / "benchmark.html").write_text(
        page.render(
            sections=[(s.title, s.lines, [(c, _html(t)) for c, t in s.tables]) for s in made],
            figures=[(figures.FIGURES[name], Markup(text)) for name, text in drawn.items()],
            config=json.dumps(config_lib.plain(config), indent=1),
        )
    )


def _plain(claims: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    said = {kind: [dataclasses.asdict(one) for one in found] for kind, found in claims.items()}
    for entry, one in zip(said["differences"], claims["differences"], strict=True):
        entry["sign"] = one.sign
    return said


def _settings(rows: Sequence[Mapping[str, Any]], plan: grid.Plan) -> Section:
    counts, used = plan.counts, sum(row["cpu_seconds"] for row in rows)
    seeds = sorted({row["seed"] for row in rows if row["condition"] == "main" and row["role"] == "test"})
    changes = ", ".join(f"{k} {v:g}" for k, v in plan.main.items())
    lines = [
        f"{len(rows)} runs, {used:.0f} s of processor time in training and scoring them (stages not counted).",
        f"Hospitals: {counts.train:,} training, {counts.valid:,} validation and {counts.test:,} test studies each; "
        f"seeds {', '.join(map(str, seeds))} in the main condition, trials on seed {plan.tuning}. "
        f"Main condition: {changes}; all else as PhantomConfig has it.",
        f"Runs: read-out of width {plan.read_out.width} on a frozen encoder's tokens, {plan.schedule.epochs} epochs of "
        f"batches of {plan.schedule.batch}, the epoch with the best AUROC on noisy validation labels; "
        f"{arms_lib.TRIALS} trials an arm, chosen by the same score.",
        "Intervals in brackets: 95 %, Student's t over seeds (each a hospital of its own).",
    ]
    return Section("Settings", lines, [])


def _half(rows: Any, half: str, claims: Mapping[str, Any], names: Sequence[str]) -> Section:
    verdicts: list[tuple[str, Any]] = []
    for metric, found in claims.items():
        title = "AUROC" if metric == "auroc" else "AUROC of rare findings"
        verdicts += [
            (f"Verdict, {title}", tables.differences(found["differences"])),
            (f"Of the way to clean labels, {title}", tables.recovered(found["recovered"])),
        ]
    shown = [(title, tables.main(rows, half, *columns)) for title, columns in _PARTS.items()]
    shown += verdicts
    shown += [("Negative rates: r = -.5 for plain wording", tables.negative(rows, half))]
    if len(names) > 1:
        shown += [("AUROC in every condition", tables.conditions(rows, half, names))]
    return Section(f"Reader's evidence: {half}", [], [(c, t) for c, t in shown if t])


def _tuning(rows: Any) -> Section:
    return Section("What tuning chose", [], [("Settings of the test runs", tables.chosen(rows))])


def _markdown(sections: Sequence[Section], drawn: Mapping[str, str]) -> str:
    parts = ["# Benchmark\n"]
    parts += [f"![{figures.FIGURES[name]}](figures/{name}.svg)\n" for name in drawn]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += ["\n".join(f"- {line}" for line in section.lines) + "\n"] if section.lines else []
        for caption, table in section.tables:
            parts += [f"### {caption}\n", tables.markdown(table)]
    return "\n".join(parts)


def _html(table: Sequence[Sequence[str]]) -> Markup:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c.strip('`'))}</{tag}>" for c in cells) + "</tr>"

    head, *body = table
    rows = "".join(line(cells, "td") for cells in body)
    return Markup(f"<table><thead>{line(head, 'th')}</thead><tbody>{rows}</tbody></table>")
