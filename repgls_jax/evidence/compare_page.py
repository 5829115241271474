"""The comparison of two evidence files as files: differences.csv, comparison.json, comparison.html, and a table."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.csv as pa_csv
from markupsafe import Markup

from repgls_jax.evidence import compare as compare_lib
from repgls_jax.evidence import sheet
from repgls_jax.results import charts

_HEAD = ("Finding", "Agreement", "Kappa", "95 %", "Only first", "Only second", "Both mention", "|dp|", "Rank r")


def confusion(counts: Sequence[Sequence[int]], description: str) -> Markup:
    """A 4 x 4 table of states as a drawing: rows the first file, columns the second, darker for a larger row share."""
    left, top, side = 82, 34, 76
    parts = [f'<text x="{left + 2 * side}" y="10" text-anchor="middle">second file</text>']
    for i, (row, name) in enumerate(zip(counts, compare_lib.NAMES, strict=True)):
        total = max(sum(row), 1)
        y = top + i * side
        parts.append(f'<text x="{left - 8}" y="{y + side / 2 + 3}" text-anchor="end">{name}</text>')
        parts.append(f'<text x="{left + (i + 0.5) * side}" y="{top - 8}" text-anchor="middle">{name}</text>')
        for j, count in enumerate(row):
            x, share = left + j * side, count / total
            parts.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{side}" height="{side}" fill-opacity="{0.5 * share:.3f}"/>'
                f'<text class="strong" x="{x + side / 2}" y="{y + 36}" text-anchor="middle">{count:,}</text>'
                f'<text class="strong" x="{x + side / 2}" y="{y + 50}" text-anchor="middle">{share:.1%}</text>'
            )
    parts.append(f'<text x="2" y="{top - 8}">first file</text>')
    return charts.svg(left + 4 * side + 6, top + 4 * side + 4, description, parts)


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows, a finding each, the last one pooled."""
    made = []
    for name, e in [*result["findings"].items(), ("All but No Finding", result["pooled"])]:
        mentioned, both = e["mentioned"], e["both"]
        cells = [name, f"{e['agreement']:.1%}", sheet.number(e["kappa"])]
        cells += [sheet.between(e["kappa_low"], e["kappa_high"])]
        cells += [f"{mentioned['only_first']:,}", f"{mentioned['only_second']:,}", f"{both['n']:,}"]
        made.append([*cells, sheet.number(both["mean_difference"]), sheet.number(both["rank_correlation"])])
    return made


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are over."""
    left, absent = result["left_out"], result["absent"]
    said = [f"{result['studies']:,} studies and {len(result['findings'])} findings that both vocabularies have."]
    if any(left):
        said.append(f"Left out, as only one file read them: {left[0]:,} of the first, {left[1]:,} of the second.")
    if any(absent):
        said.append(
            f"Without a row, and counted as not mentioned: {absent[0]:,} in the first, {absent[1]:,} in the second."
        )
    return said


def text(result: Mapping[str, Any]) -> str:
    """The comparison for a terminal."""
    hedged = result["pooled"]["hedged"]
    tail = (
        f"Where both mention a finding and one hedges (n = {hedged['n']:,}): mean |dp| "
        f"{sheet.number(hedged['mean_difference'])}, rank correlation {sheet.number(hedged['rank_correlation'])}."
    )
    return "\n".join([sheet.ruled(_HEAD, rows(result)), *notes(result), tail])


def page(result: Mapping[str, Any]) -> str:
    """The comparison as a page."""
    pooled = result["pooled"]
    both, hedged = pooled["both"], pooled["hedged"]
    tiles = [
        sheet.Tile(
            "Cohen's kappa",
            sheet.number(pooled["kappa"]),
            f"95 % {sheet.between(pooled['kappa_low'], pooled['kappa_high'])}",
        ),
        sheet.Tile("Agreement", f"{pooled['agreement']:.1%}", f"of {pooled['n']:,} (study, finding) pairs"),
        sheet.Tile("Mean |dp|, both mention", sheet.number(both["mean_difference"]), f"{both['n']:,} pairs"),
        sheet.Tile(
            "Mean |dp|, one hedges",
            sheet.number(hedged["mean_difference"]),
            f"{hedged['n']:,} pairs, rank correlation {sheet.number(hedged['rank_correlation'])}",
        ),
    ]
    drawing = confusion(pooled["confusion"], "Confusion of states, all findings but No Finding")
    single = [
        (name, confusion(e["confusion"], f"Confusion of states, {name}")) for name, e in result["findings"].items()
    ]
    about = (
        "Rows are the first file's states, columns the second's; counts, and their share of the row. Pooled over the "
        "findings other than No Finding, which follows from them."
    )
    table_about = (
        "Only first, only second: mentioned by one file alone. |dp| is the mean absolute difference of p, Rank r "
        "Spearman's correlation, where both mention the finding. Intervals treat studies as independent."
    )
    lead = f"First: {', '.join(result['first'])}. Second: {', '.join(result['second'])}. {' '.join(notes(result))}"
    sections = [
        sheet.Section("States", about, [("All findings", drawing)]),
        sheet.Section("By finding", table_about, table=sheet.Table(_HEAD, rows(result), emphasised=1)),
        sheet.Section("States by finding", "As above, a finding each.", single),
    ]
    return sheet.render("Two evidence files compared", lead, tiles, sections)


def run(first: pathlib.Path, second: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """Compares two evidence files and writes the result into the folder ``output``.

    Returns:
      The result of :func:`repgls_jax.evidence.compare.compare`, with ``first`` and ``second``, the labellers and
      versions of the files.

    Raises:
      FileNotFoundError, ValueError: a file is missing, or the two cannot be compared.
    """
    sides = compare_lib.load(first), compare_lib.load(second)
    pair = compare_lib.align(*sides)
    result = {"first": list(sides[0].labellers), "second": list(sides[1].labellers)} | compare_lib.compare(pair)
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "differences.csv.partial"
    pa_csv.write_csv(compare_lib.differences(pair), partial)
    partial.replace(output / "differences.csv")
    sheet.write(output / "comparison.json", json.dumps(result, indent=1) + "\n")
    sheet.write(output / "comparison.html", page(result))
    return result
