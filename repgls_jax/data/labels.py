"""Label columns of a table as arrays of label states."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from repgls_jax import findings as findings_lib

_VALUES = {"": findings_lib.NOT_MENTIONED, "nan": findings_lib.NOT_MENTIONED}
_SHOWN = 20  # characters of a bad value in a message: a column of prose mapped by mistake stays out of logs


def from_columns(
    columns: Mapping[str, Sequence[str]], names: Mapping[str, str], n: int, vocabulary: findings_lib.Vocabulary
) -> np.ndarray:
    """Labels given as one column per finding.

    Args:
      columns: finding -> n values: "1", "0", "-1" (or as floats), "-2" or blank.
      names: finding -> the column's name, for messages.
      n: rows.
      vocabulary: order of the axis c.

    Returns:
      int8 [n, c] label states; -2 for findings without a column.

    Raises:
      ValueError: a value is no label state; the message gives the value, the row (from 1) and the column.
    """
    states = np.full((n, len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    for finding, values in columns.items():
        k = vocabulary.index(finding)
        for i, value in enumerate(values):
            state = _state(value)
            if state is None:
                raise ValueError(
                    f"label {value[:_SHOWN]!r} in row {i + 1}, column {names[finding]!r}; expected 1 (positive), "
                    "0 (negative), -1 (uncertain) or blank (not mentioned)"
                )
            states[i, k] = state
    return states


def _state(value: str) -> int | None:
    known = _VALUES.get(value.lower())
    if known is not None:
        return known
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number in findings_lib.STATES else None


def from_lists(
    values: Sequence[str], column: str, vocabulary: findings_lib.Vocabulary, ignore: Collection[str] = ()
) -> np.ndarray:
    """Labels given as a list of the findings present, separated by "|", as NIH ChestX-ray14 does.

    Listed findings are positive, all others of the vocabulary negative. A blank cell says nothing: all not mentioned.

    Args:
      values: n cells.
      column: the column's name, for messages.
      vocabulary: order of the axis c.
      ignore: names outside the vocabulary that may be dropped.

    Returns:
      int8 [n, c] label states.

    Raises:
      ValueError: names outside the vocabulary (they are listed), "No Finding" beside a finding, or ``ignore`` names a
        finding of the vocabulary.
    """
    ignored = {findings_lib.canonical(name) for name in ignore}
    kept = sorted(ignored.intersection(vocabulary.findings))
    if kept:
        raise ValueError(
            f"ignore names {', '.join(kept)}, which the vocabulary {vocabulary.name!r} holds; leave them out"
        )
    states = np.full((len(values), len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    unknown: dict[str, int] = {}
    for i, cell in enumerate(values):
        listed = {findings_lib.canonical(name.strip()) for name in cell.split("|") if name.strip()}
        if not listed:
            continue
        if findings_lib.NO_FINDING in listed and len(listed) > 1:
            raise ValueError(f"row {i + 1}, column {column!r} lists {findings_lib.NO_FINDING!r} beside findings")
        states[i] = findings_lib.NEGATIVE
        for name in listed:
            if name in vocabulary.findings:
                states[i, vocabulary.index(name)] = findings_lib.POSITIVE
            elif name != findings_lib.NO_FINDING and name not in ignored:
                unknown[name] = unknown.get(name, 0) + 1
    if unknown:
        names = ", ".join(f"{name[:_SHOWN]!r} ({count} rows)" for name, count in sorted(unknown.items())[:20])
        raise ValueError(
            f"column {column!r} lists findings outside the vocabulary {vocabulary.name!r}: {names}; use another "
            f"vocabulary ({', '.join(findings_lib.VOCABULARIES)}) or drop them with ignore=..."
        )
    return states
