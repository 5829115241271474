"""A few kills, stops and damaged checkpoints of real processes; tests/crashes.py does many, and to LU-ViT."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_killed_stopped_and_damaged_runs_end_with_the_bits_of_one_left_alone(tmp_path):
    script = pathlib.Path(__file__).with_name("crashes.py")
    asked = ["--network=perceptron", "--kills=3", "--corruptions=2", "--stops=1", "--pairs=1", f"--folder={tmp_path}"]
    environment = os.environ | {"XLA_FLAGS": ""}  # one device: eight cost time here, and show nothing more
    done = subprocess.run(
        [sys.executable, script, *asked], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("damage: 2/2")[2]
    assert "FAILED" not in done.stdout and "same bits after" in table and table.count("fell back, same bits") == 3
