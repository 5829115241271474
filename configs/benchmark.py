"""The benchmark of label methods, see docs/benchmark.md.

    python launch/benchmark.py --config=configs/benchmark.py --output=results                    # the main condition
    python launch/benchmark.py --config=configs/benchmark.py:conditions=all --output=results     # all conditions
    python launch/benchmark.py --config=configs/benchmark.py:size=test --output=results          # a few minutes
    python launch/benchmark.py --config=configs/benchmark.py:arms=hard+expert,seeds=3 --output=results

Lists are joined by "+". Arguments are listed in :data:`ARGUMENTS`.
"""

import pathlib
import runpy

import ml_collections

from repgls_jax import config as config_lib
from repgls_jax.benchmark import conditions

# Config files are loaded by path, not imported, so the neighbour is found by its path as well.
_LUVIT = runpy.run_path(str(pathlib.Path(__file__).with_name("luvit.py")))

ARGUMENTS = {
    "size": "demo",  # test, demo
    "conditions": "main",  # names joined by "+", or all; see repgls_jax/benchmark/conditions.py
    "arms": "",  # names joined by "+"; all by default, see repgls_jax/benchmark/arms.py
    "halves": "independent+image",  # where the reader's evidence comes from
    "seeds": 0,  # hospitals; 0 takes the size's
}

SIZES = {
    "test": dict(
        model="tiny/16",
        studies=200,
        epochs=1.0,
        counts=dict(train=96, valid=48, test=64),
        schedule=dict(epochs=2, batch=32),
        read_out=dict(width=16, heads=2, mlp=16),
        seeds=2,
        few=2,
        replicates=50,
    ),
    "demo": dict(
        model="demo/16",
        studies=6000,
        epochs=20.0,
        counts=dict(train=2000, valid=1000, test=1500),
        schedule=dict(epochs=12, batch=64),
        read_out=dict(width=64, heads=4, mlp=64),
        seeds=8,
        few=3,
        replicates=500,
    ),
}
OTHER_SEED = 900001  # of the hospital where encoder and RGN come from


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """The config, with ``arguments`` ("name=value,...") applied."""
    args = config_lib.parse_arguments(arguments, ARGUMENTS)
    size = config_lib.choose("size", args.size, SIZES)
    config = ml_collections.ConfigDict()
    config.conditions = () if args.conditions == "all" else tuple(args.conditions.split("+"))
    config.arms = tuple(args.arms.split("+")) if args.arms else ()
    config.halves = tuple(args.halves.split("+"))
    config.seeds = args.seeds or size["seeds"]
    config.few = min(size["few"], config.seeds)  # hospitals of further conditions
    config.tuning = 1000  # the hospital on which trials are compared
    config.main = dict(conditions.MAIN)
    for name in ("counts", "schedule", "read_out", "replicates"):
        config[name] = size[name]
    small = "test" if args.size == "test" else "demo"
    config.other = _LUVIT["get_config"](f"policy=hard,model={size['model']},epochs={size['epochs']},size={small}")
    config.other.data.options.seed = OTHER_SEED
    config.other.data.options.count = size["studies"]
    return config
