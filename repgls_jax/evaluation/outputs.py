"""Files of an evaluation, each written whole or not at all (a temporary file is renamed into place)."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax.evaluation.sets import Alignment, Labelled
from repgls_jax.results import strata

PREDICTIONS, METRICS, TABLE = "predictions.parquet", "metrics.json", "table.md"
THRESHOLDS, PAGE = "thresholds.json", "report.html"
COMPARISON, COMPARISON_TABLE = "comparison.json", "comparison.md"


def _whole(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    temporary.replace(path)


def text(path: pathlib.Path, content: str) -> None:
    """Writes text, UTF-8."""
    _whole(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def as_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes strict JSON.

    Raises:
      ValueError: a number is not finite; the file is as it was.
    """
    text(path, json.dumps(value, indent=1, allow_nan=False))


def predictions(
    path: pathlib.Path,
    labelled: Labelled,
    predicted: Mapping[str, np.ndarray],
    vocabulary: findings_lib.Vocabulary,
    alignment: Alignment,
) -> None:
    """One row per image and finding of the model, in order.

    Columns: ids, finding, probability, the rate expected of a report, the label (null: none), and what the report says
    of the finding (null: no report).
    """
    n, c = predicted["probability"].shape
    columns = {name: np.repeat(labelled.examples[name], c) for name in ("image_id", "study_id", "patient_id")}
    columns["finding"] = np.tile(np.array(vocabulary.findings), n)
    columns |= {name: predicted[name].reshape(-1) for name in ("probability", "rate")}
    label, counts = np.zeros((n, c), np.int8), np.zeros((n, c), bool)
    label[:, alignment.model], counts[:, alignment.model] = labelled.labels, labelled.mask
    said, told = np.zeros((n, c), np.int8), np.zeros((n, c), bool)
    levels = strata.by_certainty(labelled.p, labelled.mentioned)
    said[:, alignment.model] = np.select([levels[name] for name in strata.CERTAINTY], [0, 1, 2])
    told[:, alignment.model] = labelled.told[:, None]
    wording = pa.DictionaryArray.from_arrays(
        pa.array(said.reshape(-1), mask=~told.reshape(-1)), pa.array(strata.CERTAINTY)
    ).cast(pa.string())
    table = {
        **columns,
        "label": pa.array(label.reshape(-1), pa.int8(), mask=~counts.reshape(-1)),
        "wording": wording,
    }
    _whole(path, lambda temporary: pq.write_table(pa.table(table), temporary))
