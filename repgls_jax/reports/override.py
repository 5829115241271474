"""A site's own certainties in place of the lexicon's: same cues, same states, another p.

The wording decides the state of a finding. An override only says how often the finding is there, at one site, when it
is worded so. A reading is not always at its cue's own p: alternatives share it, a sign weakens it, "no large" leaves
some. Such readings move along on the piecewise linear map that takes 0 to 0, the cue's own p to the override's, and 1
to 1:

  f(p) = p * new / own                          for p < own
  f(p) = 1 - (1 - p) * (1 - new) / (1 - own)    for p > own

It is exact at the cue's own p, keeps the order of readings, and is finite for cues whose own p is 0 or 1, which a
shift in log-odds is not.
"""

import csv
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Mapping

from repgls_jax import findings as findings_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports.resolve import Evidence

COLUMNS = ("cue", "p", "p_low", "p_high", "n", "present", "lexicon_p")
VERSION = "+override."  # what stands before the digest in the version of calibrated evidence
MAX_BYTES = 4 * 2**20  # a table has a few hundred short lines
MAX_LINE = 100_000  # characters

# Readings without a cue, by state: the finding named outright, a sign of it ("borderline heart size"), and a statement
# of normality ("heart size normal"). With the p that each stands for.
BARE = {findings_lib.POSITIVE: "bare", findings_lib.UNCERTAIN: "bare:sign", findings_lib.NEGATIVE: "bare:normal"}
BARE_P = {"bare": 1.0, "bare:sign": 0.5, "bare:normal": 0.0}


def key(cue: str, p: float) -> str:
    """The override's row for a reading: its cue's id, or one of :data:`BARE_P` for a reading without a cue."""
    return cue or BARE[findings_lib.state_of(round(p, 6))]


def own_p(lexicon: lexicon_lib.Lexicon) -> dict[str, float]:
    """The p that every row of an override stands for: those of the lexicon's cues, and :data:`BARE_P`."""
    return {c.id: c.p for c in lexicon.cues.values() if c.category != "ignored"} | BARE_P


def move(p: float, own: float, new: float) -> float:
    """The map f above: the p of a reading at ``p`` of a cue that stands for ``own``, once ``own`` becomes ``new``.

    ``p`` and ``own`` are in [0, 1], ``new`` in (0, 1). ``p`` may come from float32: 1e-6 counts as equal.
    """
    if abs(p - own) < 1e-6:
        return new
    moved = p * new / own if p < own else 1 - (1 - p) * (1 - new) / (1 - own)
    return round(moved, 6)


@dataclasses.dataclass(frozen=True)
class Override:
    """A checked override.

    Attributes:
      moves: row -> (own p, new p).
      digest: first 12 hexadecimal digits of the SHA-256 of the rows and their p; part of the evidence's version.
    """

    moves: Mapping[str, tuple[float, float]]
    digest: str

    def apply(self, e: Evidence) -> Evidence:
        """``e`` with the site's p and the state that its wording has; rows that the override lacks stay."""
        row = self.moves.get(key(e.cue, e.p))
        return e if row is None else dataclasses.replace(e, p=move(e.p, *row), said=e.p)


def parse(text: str, lexicon: lexicon_lib.Lexicon, where: str) -> Override:
    """Parses and checks an override table; only the columns ``cue`` and ``p`` are read.

    Raises:
      ValueError: a line is too long, a column is missing, there is no row, or rows are at fault (unknown or repeated
        cue, p outside (0, 1)); the message lists every fault with its line.
    """
    # The csv module has a limit of its own, but of the whole process, and other libraries lift it.
    longest = max(map(len, text.splitlines()), default=0)
    if longest > MAX_LINE:
        raise ValueError(f"override {where} has a line of {longest:,} characters; write it as plain CSV, a cue a line")
    rows = csv.DictReader(io.StringIO(text))
    missing = [c for c in ("cue", "p") if c not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"override {where} lacks the columns {missing}; expected {', '.join(COLUMNS)}")
    known = own_p(lexicon)
    moves: dict[str, tuple[float, float]] = {}
    faults: list[str] = []
    for row in rows:
        line, cue, value = rows.line_num, row["cue"] or "", row["p"] or ""
        if cue in moves:
            faults.append(f"line {line}: cue {cue[:80]!r} stands twice")
        if cue not in known:
            faults.append(f"line {line}: cue {cue[:80]!r} is not in the lexicon, nor one of {', '.join(BARE_P)}")
        try:
            p = float(value)
        except ValueError:
            p = float("nan")
        if not 0 < p < 1:
            faults.append(f"line {line}: p {value[:20]!r}; expected a number in (0, 1)")
        moves[cue] = (known.get(cue, 0.0), p)
    if not moves:
        raise ValueError(f"override {where} has no rows; expected one for each cue whose p it sets")
    if faults:
        raise ValueError(f"override {where} has {len(faults)} faults; correct them:\n" + "\n".join(faults))
    said = "\n".join(f"{cue}\t{moves[cue][1]!r}" for cue in sorted(moves))
    return Override(moves, hashlib.sha256(said.encode()).hexdigest()[:12])


def load(path: pathlib.Path, lexicon: lexicon_lib.Lexicon) -> Override:
    """Loads an override written by ``data_prep/calibrate_hedges.py`` (or by hand).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is too large, not UTF-8, or malformed, see :func:`parse`.
    """
    if not path.exists():
        raise FileNotFoundError(f"override {path} does not exist; calibrate_hedges writes one")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"override {path} has {path.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
    try:
        return parse(path.read_text("utf-8-sig"), lexicon, str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"override {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"override {path}: {error}; write it as plain CSV") from error
