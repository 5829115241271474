"""Rate Generation Network: what a report says about each finding, to a rate for each.

The paper gives the interface, textual uncertainty to r in (-1, 1)^K under expert guidance; layers and loss are this
project's decision. K finding queries attend to the words of the sentences about their finding; an MLP and tanh give the
rate. Structured evidence (label state, cue, section) can be added; it is dropped at random in training, so that the
network learns to read and not only to look up.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax import losses
from repgls_jax.models import tokens, vit

STATES = 4  # not mentioned, uncertain, negative, positive: state + 2
CUE_BUCKETS = 512  # hashed cue ids; 0 is a bare mention
REACH = 16  # words on either side of the mention whose distance is told apart
SECTIONS = ("", "findings", "impression", "other")


@dataclasses.dataclass(frozen=True)
class RGNConfig:
    """Shape of the network.

    Attributes:
      width: d of the tokens.
      depth: transformer blocks over the words.
      heads: attention heads.
      evidence: whether the structured evidence is an input besides the words.
      evidence_dropout: share of (study, finding) entries whose evidence is withheld in a training step, in [0, 1].
      dropout: on the residual branches, in [0, 1).
    """

    width: int = 64
    depth: int = 1
    heads: int = 4
    evidence: bool = False
    evidence_dropout: float = 0.5
    dropout: float = 0.1


class RGN(nn.Module):
    """Words and evidence to rates.

    Attributes:
      findings: c.
      config: shape.
    """

    findings: int
    config: RGNConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array], train: bool = False) -> Array:
        """Rates [b, c] float32 in (-1, 1).

        Args:
          batch: ``words`` [b, l, s] int32 sub-word ids (0 = padding); ``span`` [b, c, 2] int32, first word and one past
            the last of the sentence about a finding (equal: no such sentence); ``mention`` [b, c] int32, the word at
            which the finding is named; ``state`` [b, c] int8, ``cue`` [b, c] int32 in [0, CUE_BUCKETS), ``section``
            [b, c] int32 index into :data:`SECTIONS`.
          train: draws dropout from the rng "dropout".
        """
        cfg = self.config
        x = self._read(batch["words"], train)
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
        return jnp.tanh(nn.Dense(1, name="rate")(nn.LayerNorm(name="norm")(y))[..., 0])

    def _read(self, ids: Array, train: bool) -> Array:
        """Sub-word ids [b, l, s] to contextual words [b, l, d]."""
        cfg = self.config
        pieces = nn.Embed(tokens.BUCKETS, cfg.width, name="words")(ids)
        present = (ids > 0)[..., None]
        x = (pieces * present).sum(2) / jnp.sqrt(jnp.maximum(present.sum(2), 1))
        real = ids[..., 0] > 0
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

        near = nn.Embed(2 * REACH + 1, heads, name="distance", embedding_init=nn.initializers.zeros)
        bias = near(jnp.clip(distance, -REACH, REACH) + REACH)
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
    """Expert guidance: Huber to the expert rate, and a hinge on the order of pairs.

    Pairs are formed between each study and the one ``shift`` places further in the batch, finding by finding: wherever
    the expert ranks one rate above another, so should the network, by half their distance.

    Args:
      predicted: [b, c] float32.
      expert: [b, c] float32.
      weight: [b, c] float32, 0 where the table says nothing.
      delta: Huber's threshold, in rates.
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
