"""Label policies: how the four label states become the loss's (y, r, mask).

States never collapse at load; a policy turns them into targets at the edge of the loss, inside the jitted step. A
policy is one record of :data:`POLICIES`: a pure function, the rates it reads, and whether those are permuted. A method
(:mod:`repgls_jax.methods`) is a policy with a loss and what else it takes; each policy alone is a method too.

Sources: U-Ones, U-Zeros, U-Ignore from CheXpert (Irvin et al., AAAI 2019, arXiv 1901.07031); label-smoothing
regularisation of uncertain labels (LSR) with U(.55, .85) and U(0, .3) from Pham et al. (arXiv 1911.06475). The others
are named in the README's table of policies.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from repgls_jax import findings

BLANK_CHOICES = ("negative", "ignore")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Settings of the method; all are reported with every result.

    Attributes:
      name: key in :data:`repgls_jax.methods.METHODS`.
      constant: rate of the policy ``constant``, in (-1, 1).
      rho: sharpening of plain wording in the expert map, in [0, 1).
      r_blank: rate of findings that a report does not mention, in (-1, 1).
      blank: whether not-mentioned findings count as negatives or are left out of the loss.
      margin_cap: guard of negative rates, see :func:`repgls_jax.losses.gls_binary`.
      warmup: share of the run, in [0, 1], before negative rates come in.
      ramp: share of the run over which they do.
      hyper: the method's own hyperparameters that are not to keep their defaults, see :mod:`repgls_jax.methods`.
    """

    name: str = "rgn"
    constant: float = 0.2
    rho: float = 0.0
    r_blank: float = 0.0
    blank: str = "negative"
    margin_cap: float = 4.0
    warmup: float = 0.3
    ramp: float = 0.2
    hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "PolicyConfig":
        """The settings in ``config``, without asking whether there is such a method.

        Raises:
          ValueError: a value is outside its range; every one that is, is named.
        """
        made = cls(**{**config, "hyper": dict(config.get("hyper", {}))})
        problems = made.problems()
        if problems:
            raise ValueError("; ".join(problems))
        return made

    def problems(self) -> list[str]:
        """What is outside its range, a line each."""
        made, problems = self, []
        if made.blank not in BLANK_CHOICES:
            problems.append(f"policy blank {made.blank!r}: expected one of {', '.join(BLANK_CHOICES)}")
        for field in ("constant", "r_blank"):
            if not -1 < getattr(made, field) < 1:
                problems.append(f"policy {field} {getattr(made, field)}: expected a rate in (-1, 1)")
        if not 0 <= made.rho < 1:
            problems.append(f"policy rho {made.rho}: expected [0, 1)")
        if made.margin_cap <= 0:
            problems.append(f"policy margin_cap {made.margin_cap}: expected a positive number of logits")
        for field in ("warmup", "ramp"):
            if not 0 <= getattr(made, field) <= 1:
                problems.append(f"policy {field} {getattr(made, field)}: expected a share of the run in [0, 1]")
        return problems


class Targets(NamedTuple):
    """What the loss sees: ``y`` [b, c] float32 in {0, 1}, ``r`` [b, c] float32 in (-1, 1), ``mask`` [b, c] bool."""

    y: Array
    r: Array
    mask: Array


Labels = Mapping[str, Array]
TargetFn = Callable[[Labels, Array, PolicyConfig], Targets]


def _seen(labels: Labels, config: PolicyConfig) -> Array:
    """[b, c] bool: the entry carries a label, counting blanks as the policy's configuration says."""
    observed = labels["observed"]
    if config.blank == "ignore":
        observed = observed & (labels["state"] != findings.NOT_MENTIONED)
    return observed


def _blank_rate(r: Array, labels: Labels, config: PolicyConfig) -> Array:
    return jnp.where(labels["state"] == findings.NOT_MENTIONED, config.r_blank, r)


def _uncertain_as(value: int) -> TargetFn:
    def targets(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
        del key
        state = labels["state"]
        y = jnp.where(state == findings.UNCERTAIN, value, state == findings.POSITIVE)
        r = _blank_rate(jnp.zeros(state.shape, jnp.float32), labels, config)
        return Targets(y.astype(jnp.float32), r, _seen(labels, config))

    return targets


def _uncertain_ignored(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    t = _uncertain_as(0)(labels, key, config)
    return Targets(t.y, t.r, t.mask & (labels["state"] != findings.UNCERTAIN))


def _uncertain_smoothed(value: int, low: float, high: float) -> TargetFn:
    def targets(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
        t = _uncertain_as(value)(labels, key, config)
        soft = jax.random.uniform(key, t.y.shape, minval=low, maxval=high)
        # A target s on y's side of one half is the rate 2 |y - s|.
        r = jnp.where(labels["state"] == findings.UNCERTAIN, 2.0 * jnp.abs(value - soft), t.r)
        return Targets(t.y, r, t.mask)

    return targets


def _hard(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    """The likelier side of the wording, y = 1[p >= 1/2]: the strongest policy without rates."""
    del key
    y = (labels["p"] >= 0.5).astype(jnp.float32)  # p is NaN where not mentioned: False
    return Targets(y, _blank_rate(jnp.zeros_like(y), labels, config), _seen(labels, config))


def _constant(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    t = _hard(labels, key, config)
    return Targets(t.y, jnp.full_like(t.r, config.constant), t.mask)


def _rated(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    t = _hard(labels, key, config)
    return Targets(t.y, labels["rate"], t.mask)


def _believed(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    """The simulated reader's own belief in every finding, mentioned or not: extraction without error."""
    del key, config
    belief = labels["belief"]
    y = (belief >= 0.5).astype(jnp.float32)
    return Targets(y, labels["rate"], jnp.ones(y.shape, bool))


def _clean(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    del key, config
    y = labels["truth"].astype(jnp.float32)
    return Targets(y, jnp.zeros_like(y), jnp.ones(y.shape, bool))


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way of treating what the reports say.

    Attributes:
      targets: pure function (labels, key, config) -> :class:`Targets`; traced inside the step.
      rates: where ``labels["rate"]`` comes from: "" for none, "expert", "rgn" or "belief".
      permuted: whether those rates are shuffled first (:func:`repgls_jax.rates.permute`).
      needs: label columns beyond state, p and observed; only the phantom has them.
      note: one line for tables and pages.
    """

    targets: TargetFn
    note: str
    rates: str = ""
    permuted: bool = False
    needs: tuple[str, ...] = ()


POLICIES: dict[str, Policy] = {
    "u_ones": Policy(_uncertain_as(1), "uncertain counts as positive"),
    "u_zeros": Policy(_uncertain_as(0), "uncertain counts as negative"),
    "u_ignore": Policy(_uncertain_ignored, "uncertain is left out of the loss"),
    "lsr_ones": Policy(_uncertain_smoothed(1, 0.55, 0.85), "uncertain is drawn from U(.55, .85)"),
    "lsr_zeros": Policy(_uncertain_smoothed(0, 0.0, 0.3), "uncertain is drawn from U(0, .3)"),
    "hard": Policy(_hard, "the likelier side of the wording, no rate"),
    "constant": Policy(_constant, "the likelier side, one rate for all"),
    "expert": Policy(_rated, "rates from the expert map of the wording", rates="expert"),
    "rgn": Policy(_rated, "rates from the Rate Generation Network", rates="rgn"),
    "permuted": Policy(_rated, "expert rates, shuffled among equal labels", rates="expert", permuted=True),
    "rgn_permuted": Policy(_rated, "RGN rates, shuffled among equal labels", rates="rgn", permuted=True),
    "oracle": Policy(_believed, "rates from the simulated reader's own belief", rates="belief", needs=("belief",)),
    "clean": Policy(_clean, "the true labels of the phantom", needs=("truth",)),
}
