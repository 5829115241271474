"""Rows of the grid summed up: means over seeds with intervals, and what the claims rest on. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax.benchmark import arms as arms_lib
from repgls_jax.benchmark import scores, verdict

# Metric -> title, digits, and whether lower is better.
METRICS = {
    "auroc": ("AUROC", 4, False),
    "rare_auroc": ("rare", 4, False),
    "frequent_auroc": ("frequent", 4, False),
    "auprc": ("AUPRC", 4, False),
    "brier": ("Brier", 4, True),
    "brier_scaled": ("Brier, scaled", 4, True),
    "ece": ("ECE", 4, True),
    "ece_scaled": ("ECE, scaled", 4, True),
    "aurc": ("AURC", 4, True),
    "auroc_plain": ("plain", 4, False),
    "auroc_hedged": ("hedged", 4, False),
    "auroc_blank": ("not mentioned", 4, False),
    "hedge_auroc": ("hedged or plain", 4, False),
    "hedge_spearman": ("Spearman with the rate", 4, False),
    "aurc_rate": ("AURC by the rate", 4, True),
}
# Fixed policies that rates have to beat: the five of CheXpert, and the likelier side of the wording.
FIXED = (*arms_lib.CHEXPERT, "hard")

Rows = Sequence[Mapping[str, Any]]
Load = Callable[[str], np.ndarray]  # cell -> AUROC of each replicate and finding [r, c]


def of(rows: Rows, condition: str, half: str) -> dict[str, list[Mapping[str, Any]]]:
    """Arm -> its test rows in one condition and half, by seed; only arms that have every seed that any has."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row["condition"], row["half"], row["role"]) == (condition, half, "test"):
            found.setdefault(row["arm"], []).append(row)
    return {arm: sorted(mine, key=lambda r: r["seed"]) for arm, mine in found.items()}


def values(found: Mapping[str, Rows], metric: str) -> dict[str, list[float]]:
    """Arm -> the metric of each seed; NaN where it is not defined."""
    return {arm: [float("nan") if r[metric] is None else float(r[metric]) for r in rs] for arm, rs in found.items()}


def complete(found: Mapping[str, Rows]) -> dict[str, Rows]:
    """The arms that have been run on as many seeds as the one with most."""
    most = max((len(rows) for rows in found.values()), default=0)
    return {arm: rows for arm, rows in found.items() if len(rows) == most}


def draws(found: Mapping[str, Rows], load: Load, rare: bool = False) -> dict[str, np.ndarray]:
    """Arm -> mean AUROC of each seed and replicate, [seeds, replicates]; of rare findings alone if asked for.

    A finding without both classes in the test studies of a seed is left out of that seed's mean, for all arms alike.
    """
    made = {}
    for arm, rows in found.items():
        each = []
        for row in rows:
            one = np.array([np.nan if v is None else v for v in row["auroc_findings"]])
            kept = np.isfinite(one) & (scores.RARE | (not rare))
            each.append(load(row["cell"])[:, kept].mean(axis=1))
        made[arm] = np.stack(each)
    return made


def claims(rows: Rows, half: str, load: Load) -> dict[str, Any]:
    """The verdict of one half in the main condition, for AUROC of all and of rare findings.

    Returns:
      metric -> {"differences": [...], "recovered": [...]}, of :mod:`repgls_jax.benchmark.verdict`.
    """
    found = complete(of(rows, "main", half))
    controls = {name: arm.control for name, arm in arms_lib.arms().items() if arm.group in ("rates", "likelihood")}
    concerned = {*controls, *controls.values(), *FIXED, "clean"}
    made = {}
    for metric in ("auroc", "rare_auroc"):
        drawn = draws({a: r for a, r in found.items() if a in concerned}, load, metric == "rare_auroc")
        differences, shares = verdict.claims(values(found, metric), drawn, controls, FIXED)
        made[metric] = {"differences": differences, "recovered": shares}
    return made


def cell(each: Sequence[float], digits: int, spread: bool = False) -> str:
    """A mean over seeds as text, with its 95 % interval if asked for."""
    known = np.asarray(each, np.float64)
    if not np.isfinite(known).all() or not len(known):
        return "n/a"
    text = f"{known.mean():.{digits}f}"
    if not spread or len(known) < 2:
        return text
    low, high = verdict.t_interval(known.tolist())
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def paired(found: Mapping[str, Rows], metric: str, first: str, second: str) -> verdict.Difference:
    """The difference of two arms on the seeds that both have been run on."""
    shared = {row["seed"] for row in found[first]} & {row["seed"] for row in found[second]}
    kept = {arm: [row for row in found[arm] if row["seed"] in shared] for arm in (first, second)}
    return verdict.difference(values(kept, metric), {}, first, second)


def signed(d: verdict.Difference) -> str:
    """A difference as text: value and interval over seeds."""
    return f"{d.value:+.4f} [{d.seeds[0]:+.4f}, {d.seeds[1]:+.4f}]"


def differences(found: Sequence[verdict.Difference]) -> list[list[str]]:
    """What the claims rest on: each difference with both intervals, and what may be said of it."""
    made = [["difference", "value", "over hospitals", "over patients", ""]]
    for d in found:
        made.append([f"`{d.first}` less `{d.second}`", f"{d.value:+.4f}", _range(d.seeds), _range(d.patients), d.word])
    return made if len(made) > 1 else []


def recovered(found: Sequence[verdict.Recovered]) -> list[list[str]]:
    """The share of the way from the best fixed policy to clean labels; "n/a" where there is no such way."""
    made = [["arm", "from", "share", "over hospitals", "over patients"]]
    for r in found:
        shown = [_share(r.value), *(f"[{_share(low)}, {_share(high)}]" for low, high in (r.seeds, r.patients))]
        made.append([f"`{r.arm}`", f"`{r.start}`", *shown])
    return made if len(made) > 1 else []


def _range(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:+.4f}, {bounds[1]:+.4f}]"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if np.isfinite(value) else "n/a"


def main(rows: Rows, half: str, metrics: Sequence[str], baseline: str = "") -> list[list[str]]:
    """A table of the main condition: heading, then arms from the best AUROC down.

    Args:
      rows: of the grid.
      half: which.
      metrics: columns, keys of :data:`METRICS`.
      baseline: arm that AUROC is also compared with; "" for none.
    """
    found = {a: r for a, r in of(rows, "main", half).items() if arms_lib.arms()[a].main}
    area = values(found, "auroc")
    order = sorted(found, key=lambda arm: -float(np.mean(area[arm])))
    head = ["arm", "seeds", *(METRICS[m][0] for m in metrics)]
    table = [head + ([f"AUROC less {baseline}"] if baseline in found else [])]
    columns = {m: values(found, m) for m in metrics}
    for arm in order:
        line = [
            f"`{arm}`",
            str(len(found[arm])),
            *(cell(columns[m][arm], METRICS[m][1], m in ("auroc", "rare_auroc")) for m in metrics),
        ]
        if baseline in found:
            line.append(signed(paired(found, "auroc", arm, baseline)))
        table.append(line)
    return table


def negative(rows: Rows, half: str) -> list[list[str]]:
    """The runs at negative rates, beside the same arm without: figures of the same seeds."""
    found = of(rows, "main", half)
    chosen = [a for a in found if arms_lib.arms()[a].group == "negative"]
    if not chosen:
        return []
    few = min(len(found[a]) for a in chosen)
    metrics = ("auroc", "rare_auroc", "brier", "brier_scaled", "ece", "ece_scaled")
    table = [["arm", "what", *(METRICS[m][0] for m in metrics)]]
    for arm in (*(a for a in ("expert",) if a in found), *chosen):
        shown = [cell(values(found, m)[arm][:few], METRICS[m][1]) for m in metrics]
        table.append([f"`{arm}`", arms_lib.arms()[arm].words, *shown])
    return table


def conditions(rows: Rows, half: str, names: Sequence[str]) -> list[list[str]]:
    """AUROC of the short list of arms in every condition, and expert rates less hard labels and shuffled rates."""
    arms = [arm for arm in arms_lib.SHORT if any(arm in of(rows, name, half) for name in names)]
    table = [["condition", *(f"`{arm}`" for arm in arms), "expert less hard", "expert less permuted"]]
    for name in names:
        found = of(rows, name, half)
        if name == "main":  # on the seeds of the others
            few = min((len(r) for n in names if n != "main" for r in of(rows, n, half).values()), default=10**6)
            found = {arm: mine[:few] for arm, mine in found.items()}
        if not found:
            continue
        area = values(found, "auroc")
        line = [name, *(cell(area[arm], 4) if arm in area else "" for arm in arms)]
        for other in ("hard", "permuted"):
            line.append(signed(paired(found, "auroc", "expert", other)) if {"expert", other} <= set(found) else "")
        table.append(line)
    return table if len(table) > 1 else []


def chosen(rows: Rows) -> list[list[str]]:
    """What tuning chose: settings of every arm in both halves."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["condition"] == "main" and row["role"] == "test":
            found.setdefault(row["arm"], {})[row["half"]] = _settings(row["settings"])
    halves = sorted({half for mine in found.values() for half in mine})
    return [["arm", *halves]] + [[f"`{arm}`", *(mine.get(h, "") for h in halves)] for arm, mine in found.items()]


def _settings(text: str) -> str:
    return text.strip("{}").replace('"', "").replace("learning_rate", "lr")


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; the first column to the left."""
    head, *body = table
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in body)]) + "\n"
