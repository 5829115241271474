"""How well the RGN reads cues that it never saw: whole cues are held out of training, then ranked.

    python launch/unseen_cues.py --output=unseen
    python launch/unseen_cues.py --model=FOLDER --output=unseen_lm      # with a frozen language model's features
    python launch/unseen_cues.py --shift=0.15 --output=unseen_up        # taught with hedges read .15 surer

Trains on made sentences alone: once a fold, and for the phantom's own phrases once without whatever resembles them
and once with all that an RGN is taught, see repgls_jax/train/unseen.py. Prints rank correlations with the expert's
certainties and rates, with 95 % intervals by bootstrap over cues, and writes them with every cue's reading to
unseen.json in the output folder.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax import findings
from repgls_jax.data import language
from repgls_jax.train import unseen

_CONFIG = config_flags.DEFINE_config_file("config", "configs/rgn.py", "whose section rgn is used", lock_config=False)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_FOLDS = flags.DEFINE_integer("folds", 5, "folds of the cues; 0 leaves this trial out", lower_bound=0)
_PHANTOM = flags.DEFINE_integer("phantom", 3, "pairs of trainings for the phantom's phrases", lower_bound=0)
_SENTENCES = flags.DEFINE_integer("sentences", 30000, "made for a training", lower_bound=30)
_STEPS = flags.DEFINE_integer("steps", 2500, "of a training", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "reports of three sentences in a step", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 0, "of folds, sentences and trainings")
_SHIFT = flags.DEFINE_float("shift", 0.0, "added to every hedge's certainty in training")
_MODEL = flags.DEFINE_string("model", "", "folder of a language model whose features are read too")
_DIMS = flags.DEFINE_integer("dims", 96, "numbers kept of a word's features", lower_bound=1)
_DRAWS = 1000  # of the bootstrap


def main(argv: list[str]) -> None:
    """Runs the trials."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value.rgn
    config.train.steps, config.train.batch_size = _STEPS.value, _BATCH.value
    featurise = None
    if _MODEL.value:
        try:
            encode, identity = language.load(pathlib.Path(_MODEL.value))
        except (ValueError, OSError, ImportError) as error:
            sys.exit(f"unseen_cues: {error}")
        config.model.features = _DIMS.value
        featurise = functools.partial(
            language.compute, encode=encode, identity=identity, dims=_DIMS.value, seed=_SEED.value
        )
    trial = unseen.Trial(config, findings.CHEXPERT, _SENTENCES.value, featurise)
    shift: Callable[[np.ndarray], np.ndarray] | None = (lambda p: p + _SHIFT.value) if _SHIFT.value else None
    told: dict[str, unseen.Read] = {}
    if _FOLDS.value:
        told["lexicon, held out"] = trial.held_out(_FOLDS.value, _SEED.value, shift)
        told["of these, hedges"] = told["lexicon, held out"].hedges()
    for k in range(_PHANTOM.value):
        seed = _SEED.value + k
        told[f"phantom's phrases, held out, seed {seed}"] = trial.phantom(seed, shift=shift)
        told[f"phantom's phrases, all taught, seed {seed}"] = trial.phantom(seed, everything=True, shift=shift)
    result: dict[str, Any] = {"model": dict(config.model), "trials": {}}
    asked = ("folds", "sentences", "steps", "batch_size", "seed", "shift")
    result["settings"] = {name: flags.FLAGS[name].value for name in asked}
    print(f"{'trial':40} {'n':>4}  {'Spearman of certainty':24}  {'of rate':24}")
    for name, read in told.items():
        ranks = [
            unseen.spearman(ours, theirs, _DRAWS, _SEED.value)
            for ours, theirs in ((read.read_p, read.p), (read.read_rate, read.rate))
        ]
        shown = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in ranks]
        print(f"{name:40} {len(read.cue):4}  {shown[0]:24}  {shown[1]:24}")
        columns = {k: v if isinstance(v, list) else v.tolist() for k, v in dataclasses.asdict(read).items()}
        result["trials"][name] = {"certainty": ranks[0], "rate": ranks[1], "cues": columns}
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unseen.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
