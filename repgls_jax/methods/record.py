"""What a method is: one record, of pure functions and of the numbers that they take."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax import Array

from repgls_jax import losses
from repgls_jax.memory import Memory
from repgls_jax.policies import Labels, Policy, PolicyConfig, Targets

Scalar = float | Array
Hyper = Mapping[str, Scalar]
Columns = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One hyperparameter: a number, which may be traced.

    Attributes:
      default: its value where nothing is said.
      low: least value that is allowed.
      high: greatest one.
      grid: values to try where every method gets the same number of trials, best guess first.
      note: what it is, in a few words.
    """

    default: float
    low: float
    high: float
    grid: tuple[float, ...]
    note: str

    def holds(self, value: float) -> bool:
        """Whether a value is allowed."""
        return math.isfinite(value) and self.low <= value <= self.high


class Seen(NamedTuple):
    """What a loss sees of b examples beside the logits. None of it depends on the parameters.

    Attributes:
      labels: columns of the batch but for the images: state, p, observed, and rate where the policy reads one, [b, c].
      targets: y, r and mask of the method's policy, with negative rates as far as they are in force.
      hyper: the method's hyperparameters, scalars.
      config: settings that all methods share.
      progress: share of the run that is done, scalar in [0, 1).
      rows: the memory's rows of these examples, name -> [b, ...]; empty without.
      shared: the memory's other arrays; empty without.
    """

    labels: Labels
    targets: Targets
    hyper: Hyper
    config: PolicyConfig
    progress: Array
    rows: Mapping[str, Array]
    shared: Mapping[str, Array]


class View(NamedTuple):
    """Predictions for a whole split, and what is known of it. What a hook reads.

    Attributes:
      logits: [n, c] float32, of images as they are, without augmentation and dropout.
      labels: the split's columns, [n, c] each, as in :class:`Seen`.
      targets: of the method's policy, [n, c].
    """

    logits: Array
    labels: Labels
    targets: Targets


Loss = Callable[[Array, Seen], Array]
Exchange = Callable[[Array, Array, Seen], tuple[Array, Array]]


def gls(z: Array, seen: Seen) -> Array:
    """Generalized label smoothing of the targets, see :func:`repgls_jax.losses.gls_binary`."""
    t = seen.targets
    return losses.gls_binary(z, t.y, t.r, seen.config.margin_cap)


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something done between two steps, with predictions for the training and the validation split.

    Attributes:
      moments: shares of the run, in (0, 1), at which it happens.
      apply: pure, can be traced: (memory, training split, validation split, hyperparameters) -> memory of the same
        shapes. Only noisy labels are there to read, for training and validation alike.
    """

    moments: tuple[float, ...]
    apply: Callable[[Memory, View, View, Hyper], Memory]

    def steps(self, total: int) -> tuple[int, ...]:
        """The steps of a run of ``total`` after which it happens; none is the last."""
        return tuple(sorted({s for s in (max(1, round(m * total)) for m in self.moments) if s < total}))


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training on noisy and uncertain labels.

    Everything but policy and source has a default: generalized label smoothing of the policy's targets.

    Attributes:
      policy: makes the targets y, r and mask of the labels.
      source: paper and arXiv id of the method; what of it is this project's decision.
      note: one line for tables and pages; the policy's own where empty.
      loss: (z [b, c], seen) -> [b, c] float32, unreduced. Finite, with a finite gradient, wherever z is finite: also
        where the mask is not set.
      hyper: name -> hyperparameter. One that is called as a field of :class:`repgls_jax.policies.PolicyConfig` is that
        field.
      neutral: hyperparameters under which the loss of plain wording is binary cross entropy, if the rates are 0.
      weigh: seen -> [b, c] weights of at least 0, by which the mask is multiplied; None for 1.
      third: whether the loss takes a third argument, [b, c]: the logit of "uncertain" from a head of its own.
      groups: whether a column "group" [n] int, who read the film or where, is read if there is one.
      mixes: whether films are mixed in pairs, by shares drawn from Beta(alpha, alpha).
      memory: (columns of the training split, its targets, hyperparameters) -> memory at the start; pure. None for none.
      update: (z, seen) -> new rows of the memory, name -> [b, ...]; no gradient reaches what it computes.
      hook: done between steps.
      exchange: of two networks that teach each other, (z of the first, z of the second, seen) -> losses [b, c] of both.
        The first one is evaluated. None for one network.
    """

    policy: Policy
    source: str
    note: str = ""
    loss: Callable[..., Array] = gls
    hyper: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)
    neutral: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weigh: Callable[[Seen], Array] | None = None
    third: bool = False
    groups: bool = False
    mixes: bool = False
    memory: Callable[[Columns, Targets, Hyper], Memory] | None = None
    update: Callable[[Array, Seen], dict[str, Array]] | None = None
    hook: Hook | None = None
    exchange: Exchange | None = None

    @property
    def words(self) -> str:
        """One line for tables and pages."""
        return self.note or self.policy.note

    @property
    def rates(self) -> str:
        """Where the column "rate" comes from, see :class:`repgls_jax.policies.Policy`."""
        return self.policy.rates

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that only simulated data has."""
        return self.policy.needs

    @property
    def gathers(self) -> bool:
        """Whether devices exchange rows of the batch in a step: to remember them all, or to compare examples."""
        return self.update is not None or self.exchange is not None

    @property
    def networks(self) -> int:
        """How many networks are trained."""
        return 1 if self.exchange is None else 2
