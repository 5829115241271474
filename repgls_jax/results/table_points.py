"""Operating points, selective risk, strata and comparisons as text, to follow :mod:`repgls_jax.results.table`."""

from collections.abc import Mapping, Sequence
from typing import Any

from repgls_jax.results import operating, selective
from repgls_jax.results.table import DIGITS, cell, number

# rate -> its title in tables.
RATES = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "PPV", "npv": "NPV", "f1": "F1"}
STRATUM = {"auroc": "AUROC", "brier": "Brier", "ece": "ECE", "sensitivity": "Sensitivity", "specificity": "Specificity"}


def threshold(value: float | None) -> str:
    """A threshold to four digits, for rare findings have small ones."""
    return "none" if value is None else f"{value:.4f}"


def points(rule: Mapping[str, Any]) -> list[list[str]]:
    """One row a finding at a rule's threshold, and the row of means."""
    rows = [
        [finding, threshold(row["threshold"]), *(cell(row[name]) for name in RATES)]
        for finding, row in rule["findings"].items()
    ]
    return [*rows, ["Mean", "", *(cell(rule["mean"][name]) for name in RATES)]]


def strata(results: Mapping[str, Any]) -> list[list[str]]:
    """One row a level: dimension, level, labels, positives, findings with an AUROC, and the means over findings."""
    return [
        [
            dimension,
            level,
            *(f"{row[name]:,}" for name in ("labels", "positives")),
            str(row["mean"]["auroc"]["findings"]),
            *(stratum(row, name) for name in STRATUM),
        ]
        for dimension, levels in results["strata"].items()
        for level, row in levels.items()
    ]


def stratum(row: Mapping[str, Any], name: str) -> str:
    """A mean over the findings of a level, with their number where it is not that of the AUROCs, which are counted."""
    entry, counted = row["mean"][name], row["mean"]["auroc"]["findings"]
    said = cell(entry, interval=name != "ece")
    return said if entry["findings"] == counted else f"{said} ({entry['findings']})"


def brief(results: Mapping[str, Any]) -> list[str]:
    """What the terminal says after the table: each rule's means, and what leaving out the unsure gains."""
    said = [f"thresholds: {results['operating']['thresholds']}"]
    for rule, row in results["operating"]["rules"].items():
        means = ", ".join(f"{title} {number(row['mean'][name]['value'])}" for name, title in RATES.items())
        said.append(f"  {rule} ({operating.NOTES.get(rule, 'of the file')}): mean {means}")
    mean = results["selective"]["mean"]
    if mean["error"] is not None:
        kept = selective.COVERAGES[1]
        each = ", ".join(f"{mean[order]['risk'][f'{kept:g}']:.{DIGITS}f} by {order}" for order in selective.ORDERS)
        said.append(f"wrong calls: {mean['error']:.{DIGITS}f} of all; of the {kept:.0%} least unsure {each}")
    return said


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines) + "\n"


def format_markdown(results: Mapping[str, Any]) -> str:
    """Operating points, selective risk and strata, to follow ``table.format_markdown``; begins with an empty line."""
    parts = [f"\n\nThresholds: {results['operating']['thresholds']}.\n"]
    for rule, row in results["operating"]["rules"].items():
        parts.append(f"\n**{rule}**: {operating.NOTES.get(rule, 'of the file')}\n\n")
        parts.append(_markdown(["Finding", "Threshold", *RATES.values()], points(row)))
    mean = results["selective"]["mean"]
    if mean["error"] is not None:
        header = ["Unsure by", "AURC", *(f"Risk at {w:.0%}" for w in selective.COVERAGES)]
        rows = [
            [order, number(mean[order]["aurc"]), *(number(mean[order]["risk"][f"{w:g}"]) for w in selective.COVERAGES)]
            for order in selective.ORDERS
        ]
        parts.append(f"\nSelective risk, mean over findings; wrong calls of all {number(mean['error'])}, ")
        parts.append(f"AURC of the best order {number(mean['best'])}\n\n" + _markdown(header, rows))
    if results["strata"]:
        header = ["By", "Level", "Labels", "Positives", "Findings", *STRATUM.values()]
        parts.append(
            "\nStrata, means over the findings that have an AUROC in the level, or as many as stand in parentheses\n\n"
        )
        parts.append(_markdown(header, strata(results)))
    return "".join(parts)


def signed(entry: Mapping[str, Any] | None) -> str:
    """A difference as "+0.012 [-0.003, +0.027]"."""
    if entry is None or entry.get("value", entry.get("difference")) is None:
        return "n/a"
    value = entry.get("value", entry.get("difference"))
    if entry["low"] is None:
        return f"{value:+.{DIGITS}f}"
    return f"{value:+.{DIGITS}f} [{entry['low']:+.{DIGITS}f}, {entry['high']:+.{DIGITS}f}]"


def comparison(found: Mapping[str, Any]) -> list[list[str]]:
    """One row a finding and the row of means: AUROCs, differences with bootstrap intervals, DeLong's and its p."""
    rows = []
    for finding, row in [*found["findings"].items(), ("Mean", found["mean"])]:
        test = row.get("delong")
        rows.append(
            [
                finding,
                f"{row['positives']:,}" if "positives" in row else "",
                number(row["auroc"]["first"]),
                number(row["auroc"]["second"]),
                signed(row["auroc"]),
                signed(test) if "delong" in row else "",
                ("n/a" if test is None else f"{test['p']:.3g}") if "delong" in row else "",
                *(signed(row[name]) for name in ("auprc", "brier", "ece")),
            ]
        )
    return rows


COMPARISON = [
    "Finding", "Positives", "AUROC first", "second", "difference", "DeLong", "p", "AUPRC", "Brier", "ECE"
]  # fmt: skip


def format_comparison(found: Mapping[str, Any]) -> str:
    """A comparison as Markdown, with what must be known to read it."""
    b = found["bootstrap"]
    said = (
        f"first: {found['first']}; second: {found['second']}. Differences are first less second, on "
        f"{found['images']:,} images of {found['patients']:,} patients ({found['split']} split; labels: "
        f"{found['reference']}), with the 95% interval of {b['replicates']:,} paired bootstraps over patients. DeLong: "
        "the difference of AUROC with its interval between patients, and its two-sided p, not corrected for the number "
        "of findings.\n"
    )
    return said + "\n" + _markdown(COMPARISON, comparison(found))
