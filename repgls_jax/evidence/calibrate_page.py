"""A calibration as files: lexicon_override.csv, by_finding.csv, calibration.json, calibration.html, and a table.

There is no override of evidence that a language model gave: its cues are levels, which the lexicon does not have.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from repgls_jax.evidence import calibrate, labels, reliability, sheet
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import override as override_lib
from repgls_jax.results import charts

_NAMES = ("as worded", "calibrated, out of fold")
_SHOWN = 40  # cues that the terminal and the page list
_HEAD = ("Cue", "Labels", "Present", "Share", "95 %", "Lexicon", "Calibrated", "95 % ")


def curves(scores: Sequence[reliability.Reliability], description: str) -> Markup:
    """Share present against mean certainty, a dot with its interval for each bin, before and after."""
    f = charts.Frame(340, 330, (36, 8, 10, 34), (0, 1), (0, 1))
    parts = []
    for v in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x0, y0), (x1, y1) = f.at(v, 0), f.at(v, 1)
        parts.append(f'<line class="grid" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
        parts.append(f'<text x="{x0:.1f}" y="{y0 + 14:.1f}" text-anchor="middle">{v:g}</text>')
        (x0, y0), (x1, y1) = f.at(0, v), f.at(1, v)
        parts.append(f'<line class="grid" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 3.5:.1f}" text-anchor="end">{v:g}</text>')
    (x0, y0), (x1, y1) = f.at(0, 0), f.at(1, 1)
    parts.append(f'<line class="reference" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    parts.append(f'<text x="{(x0 + x1) / 2:.1f}" y="326" text-anchor="middle">mean certainty</text>')
    parts.append(f'<text x="{x0 + 6:.1f}" y="{y1 + 12:.1f}">share present</text>')
    for colour, s in enumerate(scores):
        for x, y, low, high in zip(s.mean, s.share, s.low, s.high, strict=True):
            (px, py), (_, bottom), (_, top) = f.at(x, y), f.at(x, low), f.at(x, high)
            where = f'x1="{px:.1f}" y1="{bottom:.1f}" x2="{px:.1f}" y2="{top:.1f}"'
            parts.append(f'<line class="whisker s{colour}" {where}/>')
            parts.append(f'<circle class="dot s{colour}" cx="{px:.1f}" cy="{py:.1f}" r="3.6"/>')
    return charts.svg(340, 330, description, parts)


def forest(row: Mapping[str, Any]) -> Markup:
    """One cue on [0, 1]: the observed share with its interval, the lexicon's p (hollow) and the calibrated one."""
    f = charts.Frame(220, 20, (6, 2, 6, 2), (0, 1), (0, 2))
    parts = []
    for v in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = f.at(v, 0)[0]
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="20"/>')
    a, b = f.at(row["share_low"], 1)[0], f.at(row["share_high"], 1)[0]
    parts.append(f'<line class="whisker s0" x1="{a:.1f}" y1="10" x2="{b:.1f}" y2="10"/>')
    x = f.at(row["lexicon_p"], 1)[0]
    parts.append(f'<circle class="hollow" cx="{x:.1f}" cy="10" r="3.6"/>')
    parts.append(f'<circle class="dot s1" cx="{f.at(row["p"], 1)[0]:.1f}" cy="10" r="3.6"/>')
    return Markup('<svg viewBox="0 0 220 20" aria-hidden="true">' + "".join(parts) + "</svg>")


def _cue_rows(result: Mapping[str, Any]) -> list[list[str]]:
    made = []
    for row in result["cues"][:_SHOWN]:
        if row["n"] == 0:
            break
        cells = [row["cue"], f"{row['n']:,}", f"{row['present']:,}", sheet.number(row["share"], 2)]
        cells += [sheet.between(row["share_low"], row["share_high"], 2), f"{row['lexicon_p']:g}"]
        made.append([*cells, sheet.number(row["p"]), sheet.between(row["p_low"], row["p_high"], 2)])
    return made


def _score_rows(result: Mapping[str, Any]) -> list[list[str]]:
    made = []
    for name, entry in result["reliability"].items():
        for metric in ("brier", "ece"):
            cells = [f"{name} ({entry['n']:,}), {metric.upper() if metric == 'ece' else 'Brier'}"]
            for part in (entry["before"], entry["after"]):
                cells += [sheet.number(part[metric]["value"], 4), sheet.between(*_ends(part[metric]), 4)]
            gap = entry["difference"][metric]
            made.append([*cells, f"{gap['value']:+.4f}", sheet.between(*_ends(gap), 4)])
    return made


def _ends(entry: Mapping[str, float]) -> tuple[float, float]:
    return entry["low"], entry["high"]


_SCORE_HEAD = ("Mentions", "As worded", "95 %", "Calibrated", "95 % ", "Change", "95 %  ")


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are over."""
    c = result["counts"]
    said = [
        f"{c['mentions']:,} labelled mentions in {c['studies']:,} studies; {c['labelled_only']:,} labelled studies "
        f"without evidence, {c['read_only']:,} read ones without labels.",
        f"Not mentioned: {c['silent_present']:,} of {c['silent']:,} labels are present.",
        "Intervals of scores are over studies; calibrated scores are of studies that the fit had not seen.",
    ]
    if not result["override"]:
        said.append("None of the cues is the lexicon's, so no override is written.")
    if c["passed_over"]:
        said.append(f"Label columns passed over, as they name no finding: {', '.join(c['passed_over'])}.")
    return said


def warnings(result: Mapping[str, Any]) -> list[str]:
    """What to be careful with, for cues whose meaning depends on the finding."""
    said = []
    for cue, low, at_low, high, at_high in result["uneven"]:
        said.append(
            f"{cue} differs by finding, from {at_low:.2f} ({low}) to {at_high:.2f} ({high}): its one p is a "
            "mixture. Leave out the column of a label that follows another convention than the wording."
        )
    return said


def text(result: Mapping[str, Any]) -> str:
    """The calibration for a terminal."""
    cue_rows = _cue_rows(result)
    more = sum(row["n"] > 0 for row in result["cues"]) - len(cue_rows)
    rest = [f"and {more} rarer cues, see calibration.json"] if more > 0 else []
    scores = sheet.ruled(_SCORE_HEAD, _score_rows(result))
    return "\n".join([sheet.ruled(_HEAD, cue_rows), *rest, "", scores, *notes(result), *warnings(result)])


def page(result: Mapping[str, Any], scores: Mapping[str, Sequence[reliability.Reliability]]) -> str:
    """The calibration as a page."""
    tiles = []
    for name, entry in result["reliability"].items():
        for metric, title in (("brier", "Brier"), ("ece", "ECE")):
            before, after = entry["before"][metric]["value"], entry["after"][metric]["value"]
            tiles.append(sheet.Tile(f"{title}, {name}", f"{after:.3f}", f"as worded {before:.3f}"))
    figures = [
        (f"{name.capitalize()} ({result['reliability'][name]['n']:,})", curves(pair, f"Reliability of {name}"))
        for name, pair in scores.items()
    ]
    about = (
        "Share of mentions whose finding is present against the certainty they are given, in ten bins; on the dotted "
        "line, certainties mean what they say. Whiskers are 95 % Jeffreys intervals. Calibrated certainties are of "
        "studies that the fit had not seen."
    )
    cells = _cue_rows(result)
    drawn = [[*row, forest(entry)] for row, entry in zip(cells, result["cues"], strict=False)]
    cue_about = (
        "Plain uses of each cue: labels, how many are present, and the certainty that follows. Drawn from 0 to 1: the "
        "observed share's interval (line), the lexicon's p (hollow) and the calibrated one (filled). A cue with few "
        "labels stays near its category's curve."
    )
    categories = [
        [name, f"{e['n']:,}", f"{e['present']:,}", f"{e['shift']:+.2f}", f"{e['strength']:.0f}"]
        for name, e in result["categories"].items()
    ]
    category_head = ("Category", "Labels", "Present", "Shift (log-odds)", "Worth in labels")
    finding_rows = []
    for e in result["by_finding"]:
        if e["n"] >= 5:
            row = [f"{e['category']}, {e['finding']}", f"{e['n']:,}", f"{e['present']:,}", sheet.number(e["share"], 2)]
            finding_rows.append(
                [*row, sheet.between(e["share_low"], e["share_high"], 2), sheet.number(e["expected"], 2)]
            )
    finding_head = ("Category and finding", "Labels", "Present", "Share", "95 %", "As worded")
    sections = [
        sheet.Section(
            "Reliability", about, figures, list(enumerate(_NAMES)), sheet.Table(_SCORE_HEAD, _score_rows(result))
        ),
        sheet.Section("Cues", cue_about, table=sheet.Table((*_HEAD, ""), drawn)),
        sheet.Section(
            "Categories",
            "How far each category's curve moved, and the number of labels that the curve is worth to a cue.",
            table=sheet.Table(category_head, categories),
        ),
        sheet.Section(
            "By finding",
            "All uses of a category, five labels or more. Reported, not applied: the calibration is the same for every "
            "finding.",
            table=sheet.Table(finding_head, finding_rows),
        ),
    ]
    return sheet.render("Hedges calibrated on labels", " ".join(notes(result)), tiles, sections, warnings(result))


def _by_finding(mentions: calibrate.Mentions) -> list[dict[str, Any]]:
    """Labels of each category and finding, all uses, the most frequent first."""
    groups = list(dict.fromkeys(mentions.cues.category))
    group = np.array([groups.index(c) for c in mentions.cues.category])[mentions.cue]
    at = group * len(mentions.findings) + mentions.finding
    size = len(groups) * len(mentions.findings)
    n, k = np.bincount(at, minlength=size), np.bincount(at, mentions.present, minlength=size).astype(np.int64)
    total = np.bincount(at, mentions.p, minlength=size)
    low, high = reliability.jeffreys(k, n)
    return [
        {
            "category": groups[i // len(mentions.findings)],
            "finding": mentions.findings[i % len(mentions.findings)],
            "n": int(n[i]),
            "present": int(k[i]),
            "share": k[i] / n[i],
            "share_low": float(low[i]),
            "share_high": float(high[i]),
            "expected": total[i] / n[i],
        }
        for i in np.argsort(-n, kind="stable")
        if n[i]
    ]


def _numbers(cues: calibrate.Cues, fitted: calibrate.Fit, n: np.ndarray, k: np.ndarray) -> list[dict[str, Any]]:
    """The override's rows as numbers, with the observed share."""
    low, high = reliability.jeffreys(k, n)
    where = {name: i for i, name in enumerate(cues.ids)}
    made: list[dict[str, Any]] = []
    for row in calibrate.table(cues, fitted, n, k):
        i = where[row["cue"]]
        entry: dict[str, Any] = {"cue": row["cue"], "category": cues.category[i]}
        entry |= {name: float(row[name]) for name in ("p", "p_low", "p_high", "lexicon_p")}
        entry |= {"n": int(n[i]), "present": int(k[i]), "share": float(k[i] / n[i]) if n[i] else None}
        made.append(entry | {"share_low": float(low[i]), "share_high": float(high[i])})
    return made


def _scores(
    mentions: calibrate.Mentions, after: np.ndarray, replicates: int, seed: int
) -> tuple[dict[str, list[reliability.Reliability]], dict[str, dict[str, Any]]]:
    """Reliability before and after, of all mentions and of the hedged ones; and its numbers."""
    scores, numbers = {}, {}
    for name, use in (("all mentions", np.ones(len(after), bool)), ("hedged mentions", mentions.hedged)):
        if use.any():
            pair, brier, ece = reliability.score(
                [mentions.p[use], after[use]], mentions.present[use], mentions.study[use], replicates, seed
            )
            scores[name] = pair
            parts = [{m: dataclasses.asdict(getattr(s, m)) for m in ("brier", "ece")} for s in pair]
            gaps = {"brier": dataclasses.asdict(brier), "ece": dataclasses.asdict(ece)}
            numbers[name] = {"n": int(use.sum()), "before": parts[0], "after": parts[1], "difference": gaps}
    return scores, numbers


def _csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def run(
    evidence: pathlib.Path, label_file: pathlib.Path, output: pathlib.Path, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Calibrates the cues of an evidence file on labels and writes the result into the folder ``output``.

    Args:
      evidence: evidence file, made without an override.
      label_file: see :func:`repgls_jax.evidence.labels.read`.
      output: folder.
      replicates: of the bootstrap over studies.
      seed: of the folds and of the bootstrap.

    Returns:
      What calibration.json holds: ``counts``, ``cues`` (rows of the override with the observed share), ``categories``,
      ``by_finding``, ``uneven`` (see :func:`repgls_jax.evidence.calibrate.uneven`), ``reliability`` of "all mentions"
      and "hedged mentions": scores before and after, and ``override``, the number of rows of lexicon_override.csv.

    Raises:
      FileNotFoundError, ValueError: see :func:`repgls_jax.evidence.labels.join`.
    """
    lexicon = lexicon_lib.load()
    mentions, counted = labels.join(evidence, label_file, lexicon)
    n, k = calibrate.counts(mentions)
    fitted = calibrate.fit(mentions.cues, n, k)
    known = override_lib.own_p(lexicon)
    rows = [row for row in calibrate.table(mentions.cues, fitted, n, k) if row["cue"] in known]
    after = calibrate.out_of_fold(mentions, seed)
    scores, scored = _scores(mentions, after, replicates, seed)
    group = np.array(mentions.cues.category)
    result: dict[str, Any] = {
        "counts": counted,
        "reliability": scored,
        "cues": _numbers(mentions.cues, fitted, n, k),
        "categories": {
            name: {
                "n": int(n[group == name].sum()),
                "present": int(k[group == name].sum()),
                "shift": fitted.shift[name],
                "strength": fitted.strength[name],
            }
            for name in fitted.shift
        },
        "by_finding": _by_finding(mentions),
        "uneven": calibrate.uneven(mentions),
        "override": len(rows),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "lexicon_override.csv").unlink(missing_ok=True)
    if rows:
        sheet.write(output / "lexicon_override.csv", _csv(rows, override_lib.COLUMNS))
    sheet.write(output / "by_finding.csv", _csv(result["by_finding"], tuple(result["by_finding"][0])))
    sheet.write(output / "calibration.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    sheet.write(output / "calibration.html", page(result, scores))
    return result
