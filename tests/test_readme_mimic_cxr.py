"""The README's walk through MIMIC-CXR, command by command, on a miniature in its layout."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from test_data_mimic_cxr import CANARY, make

ROOT = pathlib.Path(__file__).parents[1]
# What a miniature needs otherwise: a run that is small enough.
SMALLER = {"size=full": "size=test"}


def commands():
    block = re.search(r"<!-- mimic-cxr -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block[1].replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert len(lines) >= 8
    return lines


@pytest.mark.slow
def test_every_command_of_the_walk_works(tmp_path):
    mimic = make(tmp_path / "mimic", archive=True, packed=True)
    for folder in ("launch", "data_prep", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    lines = commands()
    assert lines[0].startswith("export MIMIC=")
    for old, new in SMALLER.items():
        assert any(old in line for line in lines)
        lines = [line.replace(old, new) for line in lines]
    script = "\n".join(["set -euo pipefail", f"export MIMIC={mimic}", *lines[1:]])
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [shutil.which("bash"), "-c", script], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    assert CANARY not in done.stdout + done.stderr
    table = pq.read_table(tmp_path / "results" / "predictions.parquet")
    assert set(table["study_id"].to_pylist()) and (tmp_path / "results" / "report.html").exists()
    assert (tmp_path / "model" / "native" / "model.safetensors").exists() or list(
        (tmp_path / "model").rglob("*.safetensors")
    )
    assert len((tmp_path / "table.csv").read_text().splitlines()) > 1
