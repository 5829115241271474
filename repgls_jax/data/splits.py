"""Splits that share no patient."""

import hashlib
from collections.abc import Sequence

from repgls_jax.data import cells
from repgls_jax.data.source import SPLITS

# Spelling, lower-cased -> name.
OFFICIAL = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validate", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHOWN = 5


def by_hash(patients: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Assigns each patient to a split by a hash of its id.

    A patient's split does not depend on the others, so that it stays when data are added; except that a split which
    would be empty takes the patient nearest to its range from the largest split.

    Args:
      patients: ids; repetitions count once.
      fractions: of train, valid and test; positive, sum 1.
      seed: another seed gives another assignment.

    Returns:
      patient -> split.

    Raises:
      ValueError: the fractions are no partition of 1, or there are fewer than three patients.
    """
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split fractions are {tuple(fractions)}; expected three positive numbers with the sum 1")
    position = {p: _unit(p, seed) for p in sorted(set(patients))}
    if len(position) < len(SPLITS):
        raise ValueError(
            f"{len(position)} patients cannot fill the splits {', '.join(SPLITS)}; add patients or a split column"
        )
    ends = (fractions[0], fractions[0] + fractions[1], 1.0)
    assigned = {p: SPLITS[next(k for k, end in enumerate(ends) if u < end or k == 2)] for p, u in position.items()}
    for k, split in enumerate(SPLITS):
        if split not in assigned.values():
            counts = {s: list(assigned.values()).count(s) for s in SPLITS}
            largest = max(SPLITS, key=lambda s: counts[s])
            centre = ends[k] - fractions[k] / 2
            nearest = min((p for p, s in assigned.items() if s == largest), key=lambda p: abs(position[p] - centre))
            assigned[nearest] = split
    return assigned


def _unit(patient: str, seed: int) -> float:
    """A number in [0, 1) that follows from the patient and the seed alone, on every machine."""
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def from_column(patients: Sequence[str], values: Sequence[str], column: str) -> dict[str, str]:
    """Reads each patient's split from a column.

    Args:
      patients: n ids.
      values: n names of splits, in any of the spellings of :data:`OFFICIAL`.
      column: the column's name, for messages.

    Returns:
      patient -> split.

    Raises:
      ValueError: a value is no split, or patients are in two splits (up to five are named, and their count).
    """
    assigned: dict[str, str] = {}
    shared: set[str] = set()
    for i, (patient, value) in enumerate(zip(patients, values, strict=True)):
        split = OFFICIAL.get(value.lower())
        if split is None:
            raise ValueError(
                f"split {value[:20]!r} in row {i + 1}, column {column!r}; expected one of {', '.join(OFFICIAL)}"
            )
        if assigned.setdefault(patient, split) != split:
            shared.add(patient)
    if shared:
        raise ValueError(
            f"{len(shared)} patients are in more than one split of column {column!r}: "
            f"{cells.names(sorted(shared), _SHOWN)}; correct the column, or switch it off with split="
        )
    return assigned


def with_valid(assigned: dict[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Adds the split valid where a data set gives only train and test, as many do.

    Args:
      assigned: patient -> split.
      fractions: of train, valid and test; the share valid / (train + valid) of the training patients moves.
      seed: of the choice, which is by a hash of the patient's id.

    Returns:
      patient -> split; ``assigned`` itself where it has a split valid, or fewer than two training patients.
    """
    training = [patient for patient, split in assigned.items() if split == "train"]
    if "valid" in assigned.values() or len(training) < 2:
        return assigned
    share = fractions[1] / (fractions[0] + fractions[1])
    order = sorted(training, key=lambda patient: _unit(patient, seed))
    return assigned | dict.fromkeys(order[: max(1, round(share * len(order)))], "valid")
