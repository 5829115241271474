"""What the RGN reads: the sentences about each finding as hashed words, and the expert's rates for them.

In: ``reports.parquet`` and ``evidence.parquet``. Out: arrays, one row a study. No text leaves this module.
"""

import dataclasses
import zlib
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import rates as rates_lib
from repgls_jax.data import language
from repgls_jax.models import rgn, tokens


@dataclasses.dataclass(frozen=True)
class Wording:
    """Inputs and guidance of the RGN.

    Attributes:
      study_ids: n ids.
      arrays: the RGN's inputs (see :class:`repgls_jax.models.rgn.RGN`), each [n, ...].
      expert: [n, c] float32 rates of the expert map; 0 where a finding is not mentioned.
      p: [n, c] float32 certainties of the evidence in [0, 1]; 0 where a finding is not mentioned.
      weight: [n, c] float32 of the guidance: 1 where a cue of the table was found, ``bare_weight`` for bare mentions,
        0 where a finding is not mentioned.
      mentioned: [n, c] bool.
      cut: evidence whose sentence was left out because its study had more than ``length`` words.
    """

    study_ids: list[str]
    arrays: dict[str, np.ndarray]
    expert: np.ndarray
    p: np.ndarray
    weight: np.ndarray
    mentioned: np.ndarray
    cut: int

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """A batch: inputs and guidance of the given rows."""
        batch = {name: values[rows] for name, values in self.arrays.items()}
        return {**batch, "expert": self.expert[rows], "p": self.p[rows], "weight": self.weight[rows]}

    def joined(self, other: "Wording") -> "Wording":
        """The studies of both, these first; of two lengths the longer one."""
        length = max(len(self.arrays["words"][0]), len(other.arrays["words"][0]))
        ours, theirs = self.padded(length).arrays, other.padded(length).arrays

        return Wording(
            self.study_ids + other.study_ids,
            {name: np.concatenate([ours[name], theirs[name]]) for name in ours},
            np.concatenate([self.expert, other.expert]),
            np.concatenate([self.p, other.p]),
            np.concatenate([self.weight, other.weight]),
            np.concatenate([self.mentioned, other.mentioned]),
            self.cut + other.cut,
        )

    def padded(self, length: int) -> "Wording":
        """The same with room for ``length`` words, which is at least what there is."""
        made = dict(self.arrays)
        for name in ("words", "features"):
            if name in made:
                room = ((0, 0), (0, length - made[name].shape[1]), (0, 0))
                made[name] = np.pad(made[name], room)
        return dataclasses.replace(self, arrays=made)


def read(
    reports: pa.Table,
    evidence: pa.Table,
    vocabulary: findings_lib.Vocabulary,
    length: int,
    bare_weight: float,
    rho: float = 0.0,
    features: pa.Table | None = None,
) -> Wording:
    """Arrays for all studies of ``reports`` that ``evidence`` has rows for, in the order of ``reports``.

    Args:
      reports: columns study_id and the fields that the evidence points into.
      evidence: from :func:`repgls_jax.sidecars.read`.
      vocabulary: order of the findings.
      length: words kept of a study at most; l is what the longest one needs, a multiple of 16.
      bare_weight: guidance weight of mentions without a cue, in [0, 1].
      rho: sharpening of plain wording in the expert's rates, in [0, 1).
      features: of a language model, see :mod:`repgls_jax.data.language`; adds the input "features" [n, l, f] float16.

    Raises:
      ValueError: a sentence has no features, or those of other words.
    """
    told = None if features is None else dict(language.sentences(features))
    rows_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in evidence.to_pylist():
        rows_of[row["study_id"]].append(row)
    texts = [report for report in reports.to_pylist() if report["study_id"] in rows_of]
    n, c = len(texts), len(vocabulary)
    arrays: dict[str, np.ndarray] = {
        "words": np.zeros((n, length, tokens.SUBWORDS), np.uint16),
        "span": np.zeros((n, c, 2), np.int32),
        "mention": np.zeros((n, c), np.int32),
        "side": np.zeros((n, c), np.int8),
        "state": np.full((n, c), findings_lib.NOT_MENTIONED, np.int8),
        "cue": np.zeros((n, c), np.int32),
        "section": np.zeros((n, c), np.int32),
    }
    if features is not None:
        arrays["features"] = np.zeros((n, length, language.dims_of(features)), np.float16)
    p = np.full((n, c), np.nan, np.float32)
    weight = np.zeros((n, c), np.float32)
    cut = 0
    for i, report in enumerate(texts):
        rows = rows_of[report["study_id"]]
        # A rule such as "No Finding" follows from other findings; no sentence says it.
        places = _pack(report, [row for row in rows if not _is_rule(row)], arrays["words"][i])
        if told is not None:
            _add_features(arrays["features"][i], report["study_id"], places, told)
        for row in rows:
            k = vocabulary.index(row["finding"])
            p[i, k] = row["p"]
            arrays["state"][i, k] = row["state"]
            arrays["cue"][i, k] = zlib.crc32(row["cue"].encode()) % (rgn.CUE_BUCKETS - 1) + 1 if row["cue"] else 0
            arrays["section"][i, k] = rgn.SECTIONS.index(row["section"]) if row["section"] in rgn.SECTIONS else 0
            place = None if _is_rule(row) else places.get((row["field"], row["start"], row["end"]))
            if place is None:
                cut += not _is_rule(row)
                continue
            first, offsets = place
            arrays["span"][i, k] = first, first + len(offsets)
            arrays["mention"][i, k] = first + max(np.searchsorted(offsets, row["mention"], side="right") - 1, 0)
            weight[i, k] = 1.0 if row["cue"] else bare_weight
    arrays["side"], expert = rates_lib.expert_rates(p, rho)
    used = int(np.nonzero(np.any(arrays["words"], axis=(0, 2)))[0].max(initial=0)) + 1
    for name in ("words", "features"):
        if name in arrays:
            arrays[name] = arrays[name][:, : min(length, -(-used // 16) * 16)]
    return Wording([r["study_id"] for r in texts], arrays, expert, np.nan_to_num(p), weight, ~np.isnan(p), cut)


def _add_features(
    into: np.ndarray,
    study: str,
    places: dict[tuple[str, int, int], tuple[int, np.ndarray]],
    told: dict[tuple[str, str, int, int], np.ndarray],
) -> None:
    """Writes the features of a study's sentences where :func:`_pack` put their words: ``into`` [l, f]."""
    for place, (first, offsets) in places.items():
        values = told.get((study, *place))
        if values is None or len(values) != len(offsets):
            raise ValueError(
                f"features of study {study}, {place}: {'none' if values is None else f'{len(values)} words'}, expected "
                f"{len(offsets)} words; run data_prep/language_features.py again on this evidence"
            )
        into[first : first + len(offsets)] = values


def _is_rule(row: dict[str, Any]) -> bool:
    return row["cue"].startswith("rule:")


def _pack(
    report: dict[str, Any], rows: list[dict[str, Any]], words: np.ndarray
) -> dict[tuple[str, int, int], tuple[int, np.ndarray]]:
    """Writes the evidence's sentences one after another into ``words`` [l, s].

    Returns:
      (field, start, end) -> (first word, character offset of each word within the field). Sentences that do not fit are
      absent.
    """
    places: dict[tuple[str, int, int], tuple[int, np.ndarray]] = {}
    used = 0
    for field, start, end in sorted({(r["field"], r["start"], r["end"]) for r in rows if r["end"] > r["start"]}):
        found = tokens.words(report[field][start:end])
        if not found or used + len(found) > len(words):
            continue
        for j, (word, _) in enumerate(found):
            grams = tokens.subwords(word)
            words[used + j, : len(grams)] = grams
        places[field, start, end] = used, np.array([start + offset for _, offset in found])
        used += len(found)
    return places
