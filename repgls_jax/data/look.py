"""A look at a complete build: counts over all of its films, and over a sample what their pixels say.

Counts read every row. Pixels are read of a sample drawn with a fixed seed, so that half a million films take minutes
and a bounded memory. Films are known by their ids; no report text is read.
"""

import dataclasses
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.data import look_films, look_pixels, shards
from repgls_jax.data.build import BOXES, read_manifest
from repgls_jax.data.look_films import Film
from repgls_jax.data.look_pixels import Pixels

LISTED = 1000  # flagged films, pairs and reasons in the numbers
_SHOWN_FLAGGED, _SHOWN_PAIRS = 24, 6
_PAIRS = 1000  # closest pairs that are compared in detail
_TYPICAL = 100  # films averaged for the mean film of a view
_FIELDS = ("image_id", "patient_id", "study_id", "view", "sex", "age", "has_report", "labels", "truth")
_DECADES = 10  # of age; the last one holds everybody of 90 and more
_QUANTILES = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class Look:
    """What there is to see.

    Attributes:
      numbers: everything counted and measured, as JSON values.
      sheets: finding -> state in words -> films drawn at random, those with boxes first.
      flagged: the first of the films that look odd.
      pairs: films of two splits, closest first, each pair with its verdict.
      means: view -> mean film, uint8 [h, w].
    """

    numbers: dict[str, Any]
    sheets: dict[str, dict[str, list[Film]]]
    flagged: list[Film]
    pairs: list[tuple[Film, Film, str]]
    means: dict[str, np.ndarray]


def look(
    folder: pathlib.Path,
    evidence: pathlib.Path | None = None,
    *,
    pixels: int = 20_000,
    films: int = 6,
    seed: int = 0,
) -> Look:
    """Looks at a build.

    Args:
      folder: a complete build.
      evidence: evidence file; its states count where a film has a report, as they do in training.
      pixels: most films of each split whose pixels are read.
      films: most films shown of a finding and state.
      seed: of the samples.

    Raises:
      FileNotFoundError: there is no complete build, or no evidence file.
      ValueError: the build or the file is of another format or vocabulary, or the file tells of other studies.
    """
    manifest = read_manifest(folder)
    rows = _rows(folder / "shards", list(manifest["counts"]))
    vocabulary = shards.vocabulary(folder / "shards")
    state, told_by = _states(rows, vocabulary, evidence)
    gallery = look_films.Gallery(folder / "shards", rows, _boxes(folder), vocabulary, manifest["simulated"])
    chosen = _sample([np.flatnonzero(rows["split"] == k) for k in range(len(rows["splits"]))], pixels, seed)
    measured = _measure(folder / "shards", rows, chosen)
    views = rows["view"][chosen]
    like = look_pixels.likeness(measured, views)
    flag = look_pixels.flags(measured, like)
    odd = np.flatnonzero(flag != "")
    odd = odd[np.argsort(like[odd], kind="stable")]
    pairs, closest = _pairs(measured, rows, chosen, gallery)
    about = {name: manifest[name] for name in ("image_size", "simulated")}
    about |= {"name": folder.resolve().name, "vocabulary": vocabulary.name, "seed": seed, "told_by": told_by}
    return Look(
        {"build": about}
        | _counted(manifest, rows, state, vocabulary)
        | _measured(measured, rows, chosen)
        | _flagged(rows, chosen[odd], flag[odd], like[odd])
        | pairs,
        gallery.sheets(state, films, seed),
        gallery.films(chosen[odd[:_SHOWN_FLAGGED]], flag[odd[:_SHOWN_FLAGGED]].tolist()),
        [(*gallery.pair(a, b), said) for a, b, said in closest[:_SHOWN_PAIRS]],
        gallery.means(chosen, views, _TYPICAL),
    )


def _counted(
    manifest: dict[str, Any], rows: dict[str, Any], state: np.ndarray, vocabulary: findings_lib.Vocabulary
) -> dict[str, Any]:
    """What is known without pixels, of all films."""
    return {
        "splits": {name: _counts(rows, rows["split"] == k) for k, name in enumerate(rows["splits"])},
        "views": _crossed(rows, "view"),
        "sex": _crossed(rows, "sex") if "sex" in rows else {},
        "age": _ages(rows) if "age" in rows else {},
        "findings": _findings(state, rows, vocabulary),
        "quarantine": _quarantine(manifest),
        # What a data set passes over before it is built, such as views that were not asked for; not all have some.
        "passed_over": dict(manifest["source"].get("left_out", {})),
    }


def _measured(pixels: Pixels, rows: dict[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    """What the pixels of a sample say, by split and by view."""
    of, views = rows["split"][chosen], rows["view"][chosen]
    splits = list(enumerate(rows["splits"]))
    return {
        "sampled": {name: int((of == k).sum()) for k, name in splits},
        "intensity": {
            "split": {name: _intensity(pixels[of == k]) for k, name in splits},
            "view": {str(view): _intensity(pixels[views == view]) for view in np.unique(views)},
        },
        "size": _sizes(pixels),
    }


def _flagged(rows: dict[str, Any], odd: np.ndarray, flag: np.ndarray, like: np.ndarray) -> dict[str, Any]:
    """The films ``odd``, counted by what is odd about them, and listed."""
    listed = [
        {
            "image_id": str(rows["image_id"][row]),
            "split": rows["splits"][rows["split"][row]],
            "flag": str(kind),
            "likeness": round(float(r), 3),
        }
        for row, kind, r in list(zip(odd, flag, like, strict=True))[:LISTED]
    ]
    return {"flags": dict(Counter(flag.tolist()).most_common()), "flagged": listed}


def _rows(folder: pathlib.Path, splits: Sequence[str]) -> dict[str, Any]:
    """The small fields of all n examples, split after split; "split" and "index" say where each one is."""
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for k, split in enumerate(splits):
        table = shards.examples(folder, split)
        n = len(table["image_id"])
        for name in _FIELDS:
            if name in table:
                parts[name].append(table[name])
        parts["split"].append(np.full(n, k, np.int8))
        parts["index"].append(np.arange(n, dtype=np.int32))
    return {name: np.concatenate(values) for name, values in parts.items()} | {"splits": list(splits)}


def _states(
    rows: dict[str, Any], vocabulary: findings_lib.Vocabulary, evidence: pathlib.Path | None
) -> tuple[np.ndarray, str]:
    """Label states int8 [n, c], and in words who tells them."""
    state = rows["labels"]
    if evidence is not None:
        table = sidecars.read(evidence, sidecars.EVIDENCE, vocabulary)
        said = sidecars.as_array(table, "state", rows["study_id"], vocabulary, findings_lib.NOT_MENTIONED)
        if not (said != findings_lib.NOT_MENTIONED).any():
            raise ValueError(
                f"evidence file {evidence} has no row for any study of the build; extract its own evidence"
            )
        told = rows["has_report"]
        who = "the reports" if told.all() else "the reports, and by the data set's labels where there is none"
        return np.where(told[:, None], said, state), who
    if "truth" in rows and (state == findings_lib.NOT_MENTIONED).all():
        return rows["truth"], "the simulation, which knows the truth"
    return state, "the data set's labels"


def _sample(groups: Sequence[np.ndarray], most: int, seed: int) -> np.ndarray:
    """At most ``most`` members of each group, in ascending order."""
    kept = []
    for k, members in enumerate(groups):
        rng = np.random.default_rng([seed, k])
        kept.append(np.sort(rng.choice(members, min(most, len(members)), replace=False)))
    return np.concatenate(kept)


def _measure(folder: pathlib.Path, rows: dict[str, Any], chosen: np.ndarray) -> Pixels:
    parts = []
    for k, split in enumerate(rows["splits"]):
        mine = chosen[rows["split"][chosen] == k]
        parts.append(look_pixels.measure(folder, split, rows["index"][mine]))
    return look_pixels.joined(parts)


def _boxes(folder: pathlib.Path) -> dict[str, dict[str, list[tuple[float, ...]]]]:
    """finding -> image id -> boxes (x0, y0, x1, y1) in pixels of the stored film; empty where the build has none."""
    found: dict[str, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    path = folder / BOXES
    if path.exists():
        for row in pq.read_table(path).to_pylist():
            corners = tuple(row[name] for name in ("x0", "y0", "x1", "y1"))
            found[row["finding"]][row["image_id"]].append(corners)
    return found


def _counts(rows: dict[str, Any], mine: np.ndarray) -> dict[str, Any]:
    _, per_patient = np.unique(rows["patient_id"][mine], return_counts=True)
    _, first = np.unique(rows["study_id"][mine], return_index=True)
    return {
        "films": int(mine.sum()),
        "studies": len(first),
        "studies_with_report": int(rows["has_report"][mine][first].sum()),
        "patients": len(per_patient),
        "films_per_patient": {"median": float(np.median(per_patient)), "most": int(per_patient.max())},
    }


def _crossed(rows: dict[str, Any], name: str) -> dict[str, dict[str, int]]:
    """value -> split -> films, the most frequent value first; "unknown" for blanks."""
    values, at = np.unique(rows[name], return_inverse=True)
    table = np.zeros((len(values), len(rows["splits"])), np.int64)
    np.add.at(table, (at, rows["split"]), 1)
    order = np.argsort(-table.sum(axis=1), kind="stable")
    return {str(values[i]) or "unknown": dict(zip(rows["splits"], table[i].tolist(), strict=True)) for i in order}


def _ages(rows: dict[str, Any]) -> dict[str, Any]:
    made = {}
    for k, name in enumerate(rows["splits"]):
        mine = rows["age"][rows["split"] == k]
        known = mine[mine >= 0]
        quartiles = [float(v) for v in np.percentile(known, (25, 50, 75))] if known.size else None
        decades = np.bincount(np.minimum(known // 10, _DECADES - 1), minlength=_DECADES).tolist()
        made[name] = {"known": len(known), "of": len(mine), "quartiles": quartiles, "by_decade": decades}
    return made


def _findings(
    state: np.ndarray, rows: dict[str, Any], vocabulary: findings_lib.Vocabulary
) -> dict[str, dict[str, dict[str, int]]]:
    """finding -> split -> state in words -> films."""
    made: dict[str, dict[str, dict[str, int]]] = {name: {} for name in vocabulary.findings}
    for k, split in enumerate(rows["splits"]):
        mine = state[rows["split"] == k]
        for j, name in enumerate(vocabulary.findings):
            made[name][split] = {words: int((mine[:, j] == s).sum()) for s, words in findings_lib.STATES.items()}
    return made


def _quarantine(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    """reason -> split -> images left out, the most frequent reason first."""
    items = manifest["quarantine"]["items"]
    most = Counter(item["reason"] for item in items).most_common(LISTED)
    pairs = Counter((item["reason"], item["split"]) for item in items)
    return {reason: {split: pairs[reason, split] for split in manifest["counts"]} for reason, _ in most}


def _intensity(pixels: Pixels) -> dict[str, Any]:
    density = look_pixels.density(pixels.histogram)
    below = np.cumsum(pixels.histogram.sum(axis=0, dtype=np.int64))
    width = 256 // look_pixels.BINS
    levels = [int(np.searchsorted(below, q * below[-1])) * width for q in _QUANTILES]
    return {
        "films": len(pixels),
        "black": round(float(pixels.black.mean()), 5),
        "white": round(float(pixels.white.mean()), 5),
        "mean": round(float(pixels.mean.mean()), 2),
        "quantiles": dict(zip(map(str, _QUANTILES), levels, strict=True)),
        "percent_per_level": [round(float(v), 4) for v in density],
    }


def _sizes(pixels: Pixels) -> dict[str, Any]:
    padding, aspect = pixels.padding, pixels.aspect
    counts, _ = np.histogram(np.clip(aspect, 0.5, 2), 30, (0.5, 2.0))
    return {
        "padding_mean": round(float(padding.mean()), 4),
        "padded_share": round(float((padding > 0.01).mean()), 4),
        "heavily_padded": int((padding > 0.4).sum()),
        "aspect_quantiles": [round(float(v), 3) for v in np.quantile(aspect, _QUANTILES)],
        "aspect_histogram": counts.tolist(),
    }


def _pairs(
    pixels: Pixels, rows: dict[str, Any], chosen: np.ndarray, gallery: look_films.Gallery
) -> tuple[dict[str, Any], list[tuple[int, int, str]]]:
    """Films that are one picture: equal in every pixel, or nearly so in two splits. Empty films are not compared.

    Returns:
      the numbers, and the closest pairs as rows with a verdict.
    """
    showing = pixels.spread >= look_pixels.FLAT
    pixels, chosen = pixels[showing], chosen[showing]
    of = rows["split"][chosen]
    first: dict[int, int] = {}
    within, exact = 0, {}
    for i, digest in enumerate(pixels.digest.tolist()):
        other = first.setdefault(digest, i)
        if other != i and of[other] == of[i]:
            within += 1
        elif other != i:
            exact[other, i] = 1.0
    close = look_pixels.close_pairs(pixels, rows["view"][chosen], of, _PAIRS)
    looked = [(a, b) for k, (a, b, r) in enumerate(close) if r >= look_pixels.CLOSE or k < _SHOWN_PAIRS]
    detail = {
        pair: look_pixels.correlation(*gallery.images(chosen[list(pair)])) for pair in looked if pair not in exact
    }
    near = {pair for pair, r in detail.items() if r >= look_pixels.SAME}
    listed, closest = [], []
    for pair, r in sorted((exact | detail).items(), key=lambda item: (-item[1], item[0]))[:LISTED]:
        verdict = "identical" if pair in exact else "same picture" if pair in near else "different"
        a, b = (int(chosen[i]) for i in pair)
        closest.append((a, b, f"{verdict}, correlation {r:.3f}"))
        listed.append(
            {
                "image_ids": [str(rows["image_id"][row]) for row in (a, b)],
                "splits": [rows["splits"][rows["split"][row]] for row in (a, b)],
                "correlation": round(r, 4),
                "verdict": verdict,
            }
        )
    copies = {"identical": len(exact), "nearly": len(near)}
    return {"copies_across_splits": copies, "copies_within_splits": within, "closest": listed}, closest
