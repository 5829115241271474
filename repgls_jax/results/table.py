"""Results as a table: plain text for the terminal, Markdown for documents."""

from collections.abc import Mapping, Sequence
from typing import Any

# metric -> title and whether the table shows its interval. A bootstrap of the ECE is biased upwards, since
# a replicate is noisier than the sample, so that its percentiles mislead.
COLUMNS = {
    "auroc": ("AUROC", True),
    "auprc": ("AUPRC", True),
    "brier": ("Brier", False),
    "ece": ("ECE", False),
}
DIGITS = 3


def number(value: float | None) -> str:
    """``value`` to three digits, "n/a" for None."""
    return "n/a" if value is None else f"{value:.{DIGITS}f}"


def why_undefined(row: Mapping[str, Any]) -> str:
    """What a finding lacks for AUROC and AUPRC; "" if nothing."""
    if row["n"] == 0:
        return "no labels"
    if row["positives"] == 0:
        return "0 positives"
    return "0 negatives" if row["positives"] == row["n"] else ""


def cell(entry: Mapping[str, Any], why: str = "", *, interval: bool = True) -> str:
    """A metric as "0.812 [0.790, 0.834]", or "n/a (0 positives)"."""
    if entry["value"] is None:
        return f"n/a ({why})" if why else "n/a"
    if not interval or entry["low"] is None:
        return number(entry["value"])
    return f"{number(entry['value'])} [{number(entry['low'])}, {number(entry['high'])}]"


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Header, one row per finding in the vocabulary's order, and the row of means, as strings."""
    table = [["Finding", "n", "positives", *(title for title, _ in COLUMNS.values())]]
    for finding in results["vocabulary"]["findings"]:
        row = results["findings"][finding]
        why = why_undefined(row)
        cells = [cell(row[name], why if shown else "", interval=shown) for name, (_, shown) in COLUMNS.items()]
        table.append([finding, f"{row['n']:,}", f"{row['positives']:,}", *cells])
    mean = results["mean"]
    scored = mean["auroc"]["findings"]
    label = f"Mean of {scored} finding{'' if scored == 1 else 's'}"
    cells = [cell(mean[name], interval=shown) for name, (_, shown) in COLUMNS.items()]
    for i, name in enumerate(COLUMNS):
        # Brier and ECE exist for findings with one class, so their mean may be over more of them.
        if mean[name]["findings"] != scored:
            cells[i] += f" ({mean[name]['findings']})"
    table.append([label, f"{results['images']:,}", "", *cells])
    return table


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the table: one sentence each."""
    b, ece = results["bootstrap"], results["ece"]
    said = [
        f"n counts labelled images; {results['images']:,} images of {results['patients']:,} patients in all.",
        f"ECE: {ece['bins']} bins of {ece['kind']}.",
    ]
    if b["replicates"]:
        said.insert(1, f"[low, high]: {b['level']:.0%} interval, {b['replicates']:,} bootstraps over patients.")
    means = {entry["findings"] for entry in results["mean"].values()}
    if len(means) > 1:
        said.append("A mean over another number of findings shows that number in parentheses.")
    return said


def _ruled(table: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    # Names and the metrics line up on the left, where their digits start; counts on the right.
    lines = [
        "  ".join(c.rjust(w) if i in (1, 2) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    return widths, [line.rstrip() for line in lines]


def format_text(results: Mapping[str, Any]) -> str:
    """The table for a terminal, about 115 columns wide, ending without a newline."""
    widths, lines = _ruled(rows(results))
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *notes(results)])


def format_markdown(results: Mapping[str, Any]) -> str:
    """The table as GitHub Markdown, with the notes below it."""
    table = [[c.replace("|", "\\|") for c in row] for row in rows(results)]
    table[-1] = [f"**{c}**" if c else "" for c in table[-1]]
    rule = ["---", "---:", "---:", *("---" for _ in COLUMNS)]
    lines = ["| " + " | ".join(row) + " |" for row in (table[0], rule, *table[1:])]
    return "\n".join([*lines, "", *notes(results)])


def format_arms(arms: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
    """The arms of :func:`repgls_jax.results.compare.arms` as a Markdown table, a row each."""

    def signed(entry: Mapping[str, Any]) -> str:
        low, high = (f"{entry[k]:+.{DIGITS}f}" if entry[k] is not None else "n/a" for k in ("low", "high"))
        return "n/a" if entry["value"] is None else f"{entry['value']:+.{DIGITS}f} [{low}, {high}]"

    lines = [
        f"| arm | mean AUROC | each seed | AUROC less {baseline} | AUPRC | Brier | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in arms.items():
        seeds = " ".join(number(value) for value in row["auroc"]["seeds"])
        cells = [name, cell(row["auroc"]), seeds, signed(row["auroc"]["difference"])]
        cells += [number(row[metric]["value"]) for metric in ("auprc", "brier", "ece")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
