"""Reports a second, on one core: the rule engine, and medspaCy on the same reports in the same process.

  python data_prep/benchmark_extraction.py --reports=reports.csv

medspaCy (not a dependency: it pins NumPy 1) is measured where it is installed, for instance in an environment of its
own (`pip install medspacy "pyarrow<24" absl-py`, then the command above with PYTHONPATH=. there). It gets the names of
the same findings as literal target rules, its own sentence splitter and its own ConText rules, and nothing else.
"""

import functools
import importlib.metadata
import importlib.util
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import run, source
from repgls_jax.reports import engine as engine_lib

_REPORTS = flags.DEFINE_string("reports", None, "Reports: anything that extract_uncertainty.py reads.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the engine and its peer take turns.", lower_bound=1)
_PEER = flags.DEFINE_integer("peer_reports", 300, "Reports that medspaCy gets in a round.", lower_bound=1)
_BULK = flags.DEFINE_integer("bulk", 0, "Also extract a file of this many reports (the reports, repeated).")

# One plain name for each finding: a peer with more names would only be slower.
_NAMES = {
    "Enlarged Cardiomediastinum": ("enlarged mediastinum", "widened mediastinum"),
    "Cardiomegaly": ("cardiomegaly", "enlarged heart"),
    "Lung Opacity": ("opacity", "opacities", "airspace disease"),
    "Lung Lesion": ("lesion", "granuloma"),
    "Edema": ("edema", "vascular congestion"),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis", "volume loss"),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("effusion", "effusions", "pleural fluid"),
    "Pleural Other": ("pleural plaque",),
    "Fracture": ("fracture", "fractures"),
    "Support Devices": ("pacemaker", "catheter", "sternotomy wires", "tube"),
    "Infiltrate": ("infiltrate", "infiltrates"),
    "Mass": ("mass",),
    "Nodule": ("nodule", "nodules"),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("fibrosis",),
    "Pleural Thickening": ("pleural thickening",),
    "Hernia": ("hernia",),
}


def _engine() -> Callable[[list[dict[str, str]]], None]:
    engine = engine_lib.Engine(findings_lib.UNION)  # new in each round: its sentence cache starts empty

    def read(reports: list[dict[str, str]]) -> None:
        for report in reports:
            engine.read(report)

    return read


def _medspacy() -> Callable[[list[dict[str, str]]], None]:
    import medspacy
    from loguru import logger
    from medspacy.ner import TargetRule

    logger.remove()  # its sentence splitter logs every word of a report, which costs time and privacy
    pipeline: Any = medspacy.load()
    rules = [TargetRule(name, finding) for finding, names in _NAMES.items() for name in names]
    pipeline.get_pipe("medspacy_target_matcher").add(rules)

    def read(reports: list[dict[str, str]]) -> None:
        for report in reports:
            pipeline("\n".join(report.get(field) or "" for field in engine_lib.FIELDS))

    return read


def _bulk(reports: list[dict[str, str]], count: int) -> str:
    """End to end, file to file, on ``count`` reports."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in reports[0] if name != "study_id"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "reports.parquet"
        schema = pa.schema([(name, pa.string()) for name in ("study_id", *names)])
        with pq.ParquetWriter(path, schema) as writer:
            for at in range(0, count, 10_000):
                some = [{**reports[i % len(reports)], "study_id": str(i)} for i in range(at, min(at + 10_000, count))]
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        run.extract(path, pathlib.Path(folder) / "evidence.parquet", findings_lib.UNION)
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        f"file to file, {count:,} reports: {seconds:.1f} s, {count / seconds:,.0f} reports/s; "
        f"peak memory {before / 1024:.0f} MiB before, {after / 1024:.0f} MiB after"
    )


def main(argv: list[str]) -> None:
    """Prints reports a second for each reader, the median over rounds, and the ratio to the peer."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    logging.set_verbosity(logging.WARNING)  # the peer would spend its time on writing lines
    try:
        reports = list(source.Source(pathlib.Path(_REPORTS.value)).reports())
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark_extraction: {error}")
    if not reports:
        sys.exit(f"benchmark_extraction: {_REPORTS.value} has no readable report; expected at least one")
    makers = {"rule engine": _engine}
    sizes = {"rule engine": len(reports)}
    if importlib.util.find_spec("medspacy") is None:
        print("medspaCy is not installed here: see the head of this file")
    else:
        peer = f"medspaCy {importlib.metadata.version('medspacy')}"
        makers[peer] = functools.cache(_medspacy)
        sizes[peer] = min(_PEER.value, len(reports))
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(_ROUNDS.value):
        for name, make in makers.items():
            read, some = make(), reports[: sizes[name]]
            start = time.process_time()
            read(some)
            rates[name].append(len(some) / (time.process_time() - start))
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    slowest = min(middle.values())
    for name, rate in middle.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{name}: {rate:,.0f} reports/s [{low:,.0f}, {high:,.0f}], {rate / slowest:.0f}x")
    if _BULK.value:
        print(_bulk(reports, _BULK.value))


if __name__ == "__main__":
    app.run(main)
