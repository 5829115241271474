"""The Rate Generation Network alone: reports in, a rate for each finding of each study out (rates.parquet).

    python launch/train.py --config=configs/rgn.py
    python launch/train.py --config=configs/rgn.py:data=table,source=DIR

Takes the arguments of configs/luvit.py, whose stages it shares: data and evidence that a LU-ViT run has left are
reused, and a LU-ViT run reuses the rates that this one leaves.
"""

import pathlib
import runpy

import ml_collections

# Config files are loaded by path, not imported, so the neighbour is found by its path as well.
_LUVIT = runpy.run_path(str(pathlib.Path(__file__).with_name("luvit.py")))


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """The config of the main job, stopping at the rates."""
    config = _LUVIT["get_config"](arguments)
    config.task = "rgn"
    return config
