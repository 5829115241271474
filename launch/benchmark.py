"""The benchmark: label methods x seeds x conditions on phantoms, resumable.

    python launch/benchmark.py --config=configs/benchmark.py --output=results
    python launch/benchmark.py --config=configs/benchmark.py:size=test --output=results

Every stage and every run is kept in the work directory, so that the same command goes on where it was stopped, and a
larger grid takes over what a smaller one has done. Writes results.parquet (a row a run), verdict.json, benchmark.md and
benchmark.html to --output.
"""

import pathlib
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax.benchmark import grid, planning, report
from repgls_jax.config import parse_flags
from repgls_jax.train.journal import Journal, duration
from repgls_jax.train.loop import DivergedError

_CONFIG = config_flags.DEFINE_config_file("config", "configs/benchmark.py", "config file, with arguments after a colon")
_WORKDIR = flags.DEFINE_string("workdir", "runs", "folder of stages and runs")
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_WORKERS = flags.DEFINE_integer("workers", 2, "processes; each computes with one thread", lower_bound=1)
_REPORT = flags.DEFINE_bool("report", False, "runs nothing, and writes the results of what has been run")


def main(argv: list[str]) -> None:
    """Prepares, runs the grid, reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    journal, began = Journal(None, sys.stderr), time.monotonic()
    output, root = pathlib.Path(_OUTPUT.value), pathlib.Path(_WORKDIR.value)
    try:
        output.mkdir(parents=True, exist_ok=True)
        todo = planning.units(_CONFIG.value)
        plan = planning.plan(_CONFIG.value, root, journal)
        rows = grid.finished(plan, todo) if _REPORT.value else grid.run(plan, todo, _WORKERS.value, journal)
        if not any(unit.condition == "main" for unit in todo):  # what other conditions are compared with
            rows = grid.finished(plan, planning.main_units(_CONFIG.value)) + rows
        report.write(output, rows, plan, _CONFIG.value)
    except (ValueError, OSError, DivergedError) as error:
        raise SystemExit(f"error: {error}") from None
    journal.say(f"{len(rows)} runs, {duration(time.monotonic() - began)}; see {output / 'benchmark.md'} and .html")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
