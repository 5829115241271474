"""The page's sections on operating points, selective risk, strata and the comparison of two models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from repgls_jax.results import charts, marks, operating, selective, table, table_points


def _parts(text: str) -> dict[str, str]:
    """ "0.812 [0.790, 0.834]" as what is read first and the rest."""
    value, space, rest = text.partition(" ")
    return {"value": value, "rest": space + rest}


def points(run: Any, colour: int) -> dict[str, Any]:
    """Of one run its rules, a table each, and confusion matrices at the main one; none of either without thresholds."""
    found = run.results.get("operating", {}).get("rules", {})
    made = []
    for rule, row in found.items():
        rows = [
            {"name": cells[0], "threshold": cells[1], "cells": [_parts(c) for c in cells[2:]]}
            for cells in table_points.points(row)
        ]
        note = operating.NOTES.get(rule, "of the file")
        made.append({"rule": rule.replace("_", " "), "note": note, "rows": rows, "open": rule == operating.MAIN})
    main = found.get(operating.MAIN, {"findings": {}})
    matrices = [
        {
            "name": finding,
            "threshold": table_points.threshold(row["threshold"]),
            "svg": marks.confusion({name: row[name] for name in operating.CELLS}, finding, colour),
        }
        for finding, row in main["findings"].items()
        if row["threshold"] is not None
    ]
    return {"name": run.name, "rules": made, "cells": matrices}


def risk(runs: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Risk against coverage: one small chart a finding, all runs in it; [] where no run has any."""
    made = []
    for finding in names:
        lines, values, errors = [], [], []
        for i, run in enumerate(runs):
            row = run.results.get("selective", {}).get("findings", {}).get(finding)
            if row is None:
                continue
            for order in selective.ORDERS:
                curve = row[order]["curve"]
                name = f"{run.name} by {order}"
                lines.append(charts.Line(curve["coverage"], curve["risk"], i, name, dashed=order == "rate"))
                values.append({"value": f"{table.number(row[order]['aurc'])}", "colour": i % charts.COLOURS})
            errors.append(row["error"])
        if lines:
            top = max([max(line.y) for line in lines] + errors)
            said = f"Risk against coverage of {finding}; AURC: " + ", ".join(
                f"{line.name} {v['value']}" for line, v in zip(lines, values, strict=True)
            )
            svg = marks.fall(lines, said, top, errors[0] if len(errors) == 1 else None)
            made.append({"finding": finding, "values": values, "svg": svg})
    return made


def strata(run: Any, colour: int) -> list[dict[str, Any]]:
    """Dimensions of one run: a row a level with its means, and AUROC by finding and level."""
    made = []
    for dimension, levels in run.results.get("strata", {}).items():
        entries = [row["mean"]["auroc"] for row in levels.values()]
        lows = [e["low"] if e["low"] is not None else e["value"] for e in entries if e["value"] is not None]
        start = min([0.5, *(math.floor(low * 10) / 10 for low in lows)])
        rows = []
        for level, row in levels.items():
            area = row["mean"]["auroc"]
            known = area["value"] is not None
            forest = charts.interval(area["value"], area["low"], area["high"], start, colour) if known else ""
            cells = [_parts(table_points.stratum(row, name)) for name in table_points.STRATUM]
            counts = [*(f"{row[name]:,}" for name in ("images", "labels", "positives")), str(area["findings"])]
            rows.append({"name": level, "counts": counts, "forest": forest, "cells": cells})
        findings = list(next(iter(levels.values()))["findings"])
        each = [
            {"name": f, "cells": [_parts(table.cell(row["findings"][f]["auroc"])) for row in levels.values()]}
            for f in findings
        ]
        made.append({"name": dimension, "start": f"{start:g}", "rows": rows, "levels": list(levels), "findings": each})
    return made


def comparison(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The comparison of two runs: a row a finding, with the difference of AUROC drawn around 0."""
    if found is None:
        return None
    entries = [row["auroc"] for row in found["findings"].values()] + [found["mean"]["auroc"]]
    tests = [row["delong"] for row in found["findings"].values()] + [None]
    ends = [e[end] for e in [*entries, *(t for t in tests if t)] for end in ("low", "high") if e[end] is not None]
    reach = math.ceil(max([0.02, *map(abs, ends)]) * 50) / 50
    rows = []
    for cells, entry, test in zip(table_points.comparison(found), entries, tests, strict=True):
        known = entry["value"] is not None
        drawn = marks.difference(entry["value"], entry["low"], entry["high"], test, reach) if known else ""
        rows.append({"name": cells[0], "cells": cells[1:4], "forest": drawn, "parts": [_parts(c) for c in cells[4:]]})
    said = table_points.format_comparison(found).split("\n", 1)[0]
    return {"about": said, "reach": f"{reach:g}", "rows": rows}
