"""Rate Generation Network: what a report says about each finding, to a rate for each.

The paper gives the interface, textual uncertainty to r in (-1, 1)^K under expert guidance; layers and loss are this
project's decision. K finding queries attend to the words of the sentences about their finding; an MLP gives the
certainty p that the wording expresses, and the rate, by tanh. Structured evidence (label state, cue, section) can be
added; it is dropped at random in training, so that the network learns to read and not only to look up.

In a *monotone* network (the default) the rate is a function of the certainty alone. Let y be the label that the rate is
for, and q the certainty in its favour: p where y = 1, 1 - p where y = 0. Then r = f(q), with one f for all findings and
wordings that never rises (:func:`expert_map`): of two wordings on the same side, the surer one has no larger rate,
whatever the parameters are. Wording that the network reads as speaking against y (q < 1/2) has the largest rate, which
takes nearly all of the label's pull away. Without it, the rate has an output of its own.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repgls_jax import losses
from repgls_jax import rates as rates_lib
from repgls_jax.models import tokens, vit

STATES = 4  # not mentioned, uncertain, negative, positive: state + 2
CUE_BUCKETS = 512  # hashed cue ids; 0 is a bare mention
REACH = 16  # words on either side of the mention whose distance is told apart
SECTIONS = ("", "findings", "impression", "other")
KNOTS = 11  # of the monotone map, at q = .5, .55, ..., 1


class Reading(NamedTuple):
    """What the network reads: ``rate`` [b, c] float32 in (-1, 1), and certainty ``p`` [b, c] float32 in [0, 1]."""

    rate: Array
    p: Array


@dataclasses.dataclass(frozen=True)
class RGNConfig:
    """Shape of the network.

    Attributes:
      width: d of the tokens.
      depth: transformer blocks over the words; without any, a word sees two neighbours on either side.
      heads: attention heads.
      evidence: whether the structured evidence is an input besides the words.
      evidence_dropout: share of (study, finding) entries whose evidence is withheld in a training step, in [0, 1].
      dropout: on the residual branches, in [0, 1).
      word_dropout: share of words of which only the pieces are seen in a training step, and half as many pieces are
        withheld, in [0, 1): words never seen share only pieces with those that were.
      monotone: whether the rate is a falling function of the certainty alone.
      features: f of a language model's features of each word, an input besides the words; 0 for none.
    """

    width: int = 64
    depth: int = 0
    heads: int = 4
    evidence: bool = False
    evidence_dropout: float = 0.5
    dropout: float = 0.1
    word_dropout: float = 0.3
    monotone: bool = True
    features: int = 0


def expert_map(q: Array, steps: Array, top: Array) -> Array:
    """A piecewise linear map that never rises, through tanh: [...] in (-1, 1).

    Args:
      q: [...] certainty in favour of the label, in [0, 1]; below .5 the map is flat.
      steps: [KNOTS - 1]; any real numbers, of which softplus makes falls.
      top: scalar; atanh of the largest rate.
    """
    place = jnp.clip((q - 0.5) * 2 * (KNOTS - 1), 0.0, KNOTS - 1.0)
    reached = jnp.clip(place[..., None] - jnp.arange(KNOTS - 1), 0.0, 1.0)
    return jnp.tanh(top - (reached * jax.nn.softplus(steps)).sum(-1))


def expert_steps() -> tuple[np.ndarray, float]:
    """``steps`` and ``top`` under which :func:`expert_map` is the expert's map at the knots."""
    levels = np.arctanh(rates_lib.hedge_rate(np.linspace(0.5, 1.0, KNOTS)))
    return np.log(np.expm1(-np.diff(levels))).astype(np.float32), float(levels[0])


class RGN(nn.Module):
    """Words and evidence to rates.

    Attributes:
      findings: c.
      config: shape.
    """

    findings: int
    config: RGNConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array], train: bool = False) -> Reading:
        """Rates and certainties.

        Args:
          batch: ``words`` [b, l, s] int32 sub-word ids (0 = padding); ``span`` [b, c, 2] int32, first word and one past
            the last of the sentence about a finding (equal: no such sentence); ``mention`` [b, c] int32, the word at
            which the finding is named; ``side`` [b, c] int8, the label in {0, 1} that the rate is for; ``state`` [b, c]
            int8, ``cue`` [b, c] int32 in [0, CUE_BUCKETS), ``section`` [b, c] int32 index into :data:`SECTIONS`; with
            ``config.features`` also ``features`` [b, l, f] float.
          train: draws dropout from the rng "dropout".
        """
        cfg = self.config
        x = self._read(batch, train)
        b, _, d = x.shape
        queries = self.param("queries", nn.initializers.normal(0.02), (self.findings, d))
        queries = jnp.broadcast_to(queries[None], (b, self.findings, d))
        if cfg.evidence:
            queries = queries + self._evidence(batch, train)
        place = jnp.arange(x.shape[1])
        about = (place >= batch["span"][..., :1]) & (place < batch["span"][..., 1:])
        distance = place - batch["mention"][..., None]
        # A word that every query can see, so that a finding nobody mentions has something to attend to.
        nothing = self.param("nothing", nn.initializers.normal(0.02), (1, 1, d))
        seen = jnp.concatenate([jnp.ones((b, self.findings, 1), bool), about], axis=2)
        x = jnp.concatenate([jnp.broadcast_to(nothing, (b, 1, d)), x], axis=1)
        y = queries + self._attend(queries, x, seen, distance)
        y = nn.LayerNorm(name="mlp_norm")(y)
        y = y + vit.Mlp(2 * d, name="mlp")(y)
        y = nn.LayerNorm(name="norm")(y)
        u = nn.Dense(1, name="certainty")(y)[..., 0]
        p = jax.nn.sigmoid(u)
        if not cfg.monotone:
            return Reading(jnp.tanh(nn.Dense(1, name="rate")(y)[..., 0]), p)
        steps, top = expert_steps()
        fall = self.param("map_steps", lambda _: jnp.asarray(steps))
        most = self.param("map_top", lambda _: jnp.float32(top))
        q = jax.nn.sigmoid(jnp.where(batch["side"] == 1, u, -u))
        return Reading(expert_map(q, fall, most), p)

    def _read(self, batch: dict[str, Array], train: bool) -> Array:
        """Sub-word ids [b, l, s], and a language model's features, to contextual words [b, l, d]."""
        cfg = self.config
        ids = batch["words"]
        present = ids > 0
        real = present[..., 0]
        if train and cfg.word_dropout:
            # Piece 0 is the word itself.
            share = jnp.where(jnp.arange(ids.shape[-1]) == 0, cfg.word_dropout, cfg.word_dropout / 2)
            present &= jax.random.bernoulli(self.make_rng("dropout"), 1 - share, ids.shape)
        present = present[..., None]
        pieces = nn.Embed(tokens.BUCKETS, cfg.width, name="words")(ids)
        x = (pieces * present).sum(2) / jnp.sqrt(jnp.maximum(present.sum(2), 1))
        if cfg.features:
            x = x + nn.Dense(cfg.width, name="features")(batch["features"].astype(jnp.float32))
        # Neighbours in front and behind: order matters ("no definite" against "definite, no"), absolute places do not.
        x = x + nn.Conv(cfg.width, (5,), name="neighbours")(x * real[..., None])
        mask = real[:, None, :] & real[:, :, None]
        for i in range(cfg.depth):
            x = vit.Block(cfg.heads, 2 * cfg.width, cfg.dropout, name=f"block_{i}")(x, mask, train)
        return nn.LayerNorm(name="words_norm")(x)

    def _evidence(self, batch: dict[str, Array], train: bool) -> Array:
        """Embedded state, cue and section [b, c, d], withheld at random in training."""
        cfg = self.config
        e = (
            nn.Embed(STATES, cfg.width, name="state")(batch["state"].astype(jnp.int32) + 2)
            + nn.Embed(CUE_BUCKETS, cfg.width, name="cue")(batch["cue"])
            + nn.Embed(len(SECTIONS), cfg.width, name="section")(batch["section"])
        )
        if train:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - cfg.evidence_dropout, e.shape[:2])
            e = e * keep[..., None]
        return e

    def _attend(self, queries: Array, x: Array, seen: Array, distance: Array) -> Array:
        """Attention with a learned bias for the distance from the mention: [b, c, d]."""
        heads, width = self.config.heads, self.config.width

        def project(name: str, value: Array) -> Array:
            return nn.DenseGeneral((heads, width // heads), name=name)(value)

        # A product with one-hot distances: the gradient of a look-up is a scatter, which is slow on a CPU.
        apart = jax.nn.one_hot(jnp.clip(distance, -REACH, REACH) + REACH, 2 * REACH + 1)
        bias = nn.Dense(heads, use_bias=False, name="distance", kernel_init=nn.initializers.zeros)(apart)
        bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0), (0, 0)))  # the "nothing" word
        mixed = jax.nn.dot_product_attention(
            project("query", queries),
            project("key", x),
            project("value", x),
            bias=bias.transpose(0, 3, 1, 2),
            mask=seen[:, None],
        )
        return nn.DenseGeneral(width, axis=(-2, -1), name="out")(mixed)


def guidance(
    predicted: Array, expert: Array, weight: Array, delta: float, ordering: float, shift: Array
) -> dict[str, losses.Term]:
    """Expert guidance of rates, or of signed certainties 2p - 1: Huber to the expert's, and a hinge on their order.

    Pairs are formed between each study and the one ``shift`` places further in the batch, finding by finding: wherever
    the expert ranks one above another, so should the network, by half their distance.

    Args:
      predicted: [b, c] float32.
      expert: [b, c] float32.
      weight: [b, c] float32, 0 where the table says nothing.
      delta: Huber's threshold.
      ordering: weight of the hinge.
      shift: scalar integer in [1, b).

    Returns:
      Terms "huber" and "ordering", [b, c], unreduced.
    """
    error = jnp.abs(predicted - expert)
    huber = jnp.where(error < delta, 0.5 * error**2 / delta, error - 0.5 * delta)
    gap = expert - jnp.roll(expert, shift, axis=0)
    lead = predicted - jnp.roll(predicted, shift, axis=0)
    pair = weight * jnp.roll(weight, shift, axis=0) * (gap > 0)
    hinge = jax.nn.relu(0.5 * gap - lead)
    return {"huber": losses.Term(huber, weight), "ordering": losses.Term(hinge, pair, ordering)}


def build(findings: int, **settings: Any) -> RGN:
    """The network for ``findings`` findings; ``settings`` are fields of :class:`RGNConfig`."""
    return RGN(findings, RGNConfig(**settings))
