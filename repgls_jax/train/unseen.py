"""Does the RGN read cues that it never saw? Whole cues are held out of training, then ranked by the network.

A table of cues knows nothing of a cue outside it; a network that has learned wording does. Two trials, both on single
sentences:

  folds    the lexicon's cues in folds: trained on sentences of the other folds' cues, asked for this fold's
  phantom  the simulated readers' own phrases that no list of hedges holds: trained on all cues of the lexicon but those
           that the rule engine finds in these phrases, asked for the phrases in the phantom's own sentences

Besides, it is trained on expressions of general English (:mod:`repgls_jax.reports.expressions`), without those that
hold all content words of a wording it is asked for.

What is compared is the order of the cues by certainty, and by rate (for the label on the expert's side).
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
from scipy import stats

from repgls_jax import findings as findings_lib
from repgls_jax import rates as rates_lib
from repgls_jax.data import cue_sentences
from repgls_jax.data import wording as wording_lib
from repgls_jax.models import rgn as rgn_model
from repgls_jax.phantom import phrases, report, terms
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports import expressions as expressions_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import patterns
from repgls_jax.train import rgn
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.state import create
from repgls_jax.train.step import make_train_step

_WORDS = 64  # of a made report
_RARE = tuple(phrase for phrase in phrases.HEDGES if not phrase.common)
_LOW, _HIGH = 0.1, 0.9  # certainties between are hedges
# Words of a table of reports, for a language model's features; see repgls_jax.data.language.
Featurise = Callable[[pa.Table, pa.Table], pa.Table]


@dataclasses.dataclass(frozen=True)
class Read:
    """What the network made of cues that it had not seen; one entry a cue.

    Attributes:
      cue: n ids.
      p: [n] the expert's certainty.
      read_p: [n] the network's, the mean over sentences.
      rate: [n] the expert's rate.
      read_rate: [n] the network's, for the label on the expert's side.
      fold: [n] integer.
    """

    cue: list[str]
    p: np.ndarray
    read_p: np.ndarray
    rate: np.ndarray
    read_rate: np.ndarray
    fold: np.ndarray

    def hedges(self) -> "Read":
        """The cues between plain negation and plain assertion."""
        at = (self.p > _LOW) & (self.p < _HIGH)
        return self.take(np.nonzero(at)[0])

    def take(self, rows: np.ndarray) -> "Read":
        """Some of the cues."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self) if f.name != "cue"}
        return Read([self.cue[i] for i in rows], **arrays)


def spearman(ours: np.ndarray, theirs: np.ndarray, replicates: int, seed: int) -> tuple[float, float, float]:
    """Rank correlation, with a 95 % interval by bootstrap over cues: (value, low, high); NaN for fewer than 3."""
    if len(ours) < 3:
        return (float("nan"),) * 3
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(replicates):
        rows = random.integers(0, len(ours), len(ours))
        if np.ptp(ours[rows]) > 0 and np.ptp(theirs[rows]) > 0:
            draws.append(float(stats.spearmanr(ours[rows], theirs[rows])[0]))
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (float("nan"), float("nan"))
    return float(stats.spearmanr(ours, theirs)[0]), float(low), float(high)


def folds(ids: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """The ids dealt into ``count`` folds at random; every id is in one."""
    order = np.random.default_rng(seed).permutation(len(ids))
    return [[ids[i] for i in order[k::count]] for k in range(count)]


def rare_phrases(vocabulary: findings_lib.Vocabulary) -> tuple[pa.Table, pa.Table, set[str]]:
    """The phantom's phrases that a typical list of hedges lacks, in its own sentences about every finding.

    Returns:
      (reports, evidence as :func:`repgls_jax.data.cue_sentences.make` gives it, with the phrase as the cue and the
      phantom's certainty; ids of the cues that the rule engine finds in these sentences).
    """
    engine = engine_lib.Engine(vocabulary)
    reports, rows, found = [], [], set[str]()
    for phrase in _RARE:
        for t, template in enumerate(phrase.templates):
            for finding, name in terms.SHORT.items():
                if finding == "Support Devices" or finding not in vocabulary.findings:
                    continue
                text = report.fill(template, terms.Term(name))
                study = f"{phrase.cue}/{t}/{finding}"
                reports.append({"study_id": study, cue_sentences.FIELD: text})
                rows.append(
                    cue_sentences.evidence(
                        study, finding, phrase.cue, phrase.p, (0, len(text)), text.lower().index(name), len(name)
                    )
                )
                found |= {e.cue for e in engine.candidates({cue_sentences.FIELD: text}) if e.cue}
    return pa.Table.from_pylist(reports), cue_sentences.table(rows, vocabulary), found


class Trial:
    """The network, trained again and again on made sentences.

    Attributes:
      vocabulary: findings that are spoken of.
      lexicon: whose cues are used.
      english: expressions that are used besides; empty for none.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        vocabulary: findings_lib.Vocabulary,
        sentences: int,
        featurise: Featurise | None = None,
    ) -> None:
        """Describes the trial.

        Args:
          config: of the RGN, as in configs/luvit.py.
          vocabulary: order of the findings.
          sentences: made for each training.
          featurise: features of a language model; None without one. ``config.model.features`` must agree.
        """
        self.vocabulary, self.lexicon, self.english = vocabulary, lexicon_lib.load(), expressions_lib.load()
        self._config, self._sentences, self._featurise = config, sentences, featurise
        self._model = rgn_model.build(len(vocabulary), **config.model)
        self._tx = optimizer(config.train, config.train.steps)
        self._step = jax.jit(make_train_step(rgn.make_loss(self._model, config.delta, config.ordering), self._tx))
        self._apply = jax.jit(lambda params, batch: self._model.apply({"params": params}, batch))

    def wording(self, made: tuple[pa.Table, pa.Table]) -> wording_lib.Wording:
        """What the network reads of made reports."""
        features = self._featurise(*made) if self._featurise else None
        read = wording_lib.read(*made, self.vocabulary, _WORDS, self._config.bare_weight, features=features)
        return read.padded(_WORDS)

    def train(
        self,
        only: Collection[str],
        held_out: Iterable[Sequence[str]],
        seed: int,
        shift: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Any:
        """Parameters after training.

        Args:
          only: ids of the cues that sentences are made of.
          held_out: wordings, as words, that no expression may hold.
          seed: of sentences and training.
          shift: changes the hedges' certainties.
        """
        english = expressions_lib.without(self.english, held_out, self.lexicon.forms)
        made = cue_sentences.make(self.lexicon, self.vocabulary, self._sentences // 3, seed, only, english)
        if shift is not None:
            p = made[1].column("p").to_numpy()
            moved = np.where((p > _LOW) & (p < _HIGH), np.clip(shift(p), 0.02, 0.98), p)
            at = made[1].schema.get_field_index("p")
            made = made[0], made[1].set_column(at, made[1].schema.field(at), pa.array(moved.astype(np.float32)))
        wording = self.wording(made)
        config = self._config.train
        sample = {name: jnp.asarray(values[:1]) for name, values in wording.arrays.items()}
        params = jax.jit(self._model.init)(jax.random.key(seed), sample)["params"]
        state = create(params, self._tx, seed)
        feed = rgn.batches(wording, np.arange(len(wording.study_ids)), config.batch_size, seed)(0)
        for _ in range(config.steps):
            state, _ = self._step(state, next(feed))
        return state.params

    def read(self, params: Any, made: tuple[pa.Table, pa.Table], fold: int = 0) -> Read:
        """What the network makes of the cues in ``made``; plain sentences are left out."""
        wording = self.wording(made)
        rows, size = np.arange(len(wording.study_ids)), 128
        outs = []
        for first in range(0, len(rows), size):
            chosen = np.minimum(np.arange(first, first + size), len(rows) - 1)
            got = self._apply(params, {name: values[chosen] for name, values in wording.arrays.items()})
            outs.append((np.asarray(got.p)[: len(rows) - first], np.asarray(got.rate)[: len(rows) - first]))
        p, rate = (np.concatenate(part) for part in zip(*outs, strict=True))
        place = {study: i for i, study in enumerate(wording.study_ids)}
        heard: dict[str, list[tuple[float, float, float]]] = {}
        for row in made[1].to_pylist():
            at = place[row["study_id"]], self.vocabulary.index(row["finding"])
            if row["cue"] and wording.weight[at] > 0:  # 0: the sentence did not fit
                heard.setdefault(row["cue"], []).append((row["p"], p[at], rate[at]))
        means = np.array([np.mean(values, axis=0) for values in heard.values()])
        expert = rates_lib.expert_rates(means[:, 0])[1]
        return Read(list(heard), means[:, 0], means[:, 1], expert, means[:, 2], np.full(len(means), fold))

    def held_out(self, count: int, seed: int, shift: Callable[[np.ndarray], np.ndarray] | None = None) -> Read:
        """Every cue of the lexicon, read by a network that was trained without the cues of its fold."""
        ids = [cue.id for cue in cue_sentences.cues(self.lexicon)]
        parts = []
        for k, fold in enumerate(folds(ids, count, seed)):
            rest = set(ids) - set(fold)
            held = [row for cue in fold for row in patterns.expand(self.lexicon.cues[cue].cue)]
            params = self.train(rest, held, seed + k, shift)
            # About eight sentences a cue: three to a report, some of them plain.
            made = cue_sentences.make(self.lexicon, self.vocabulary, 3 * len(fold), 1000 + seed + k, fold)
            parts.append(self.read(params, made, k))
        names = [f.name for f in dataclasses.fields(Read) if f.name != "cue"]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Read([cue for part in parts for cue in part.cue], **joined)

    def phantom(
        self, seed: int, everything: bool = False, shift: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Read:
        """The phantom's rare phrases, read by a network that was trained without any cue found in them.

        Args:
          seed: of sentences and training.
          everything: train on all cues and expressions, as the RGN of a run is: the phrases are then new to the rule
            engine alone, as no list was made for them, but parts of some stand in one.
          shift: changes the hedges' certainties in training.
        """
        reports, evidence, found = rare_phrases(self.vocabulary)
        ids = {cue.id for cue in cue_sentences.cues(self.lexicon)}
        held = [phrase.cue.split() for phrase in _RARE]
        only, without = (ids, ()) if everything else (ids - found, held)
        return self.read(self.train(only, without, seed, shift), (reports, evidence))
