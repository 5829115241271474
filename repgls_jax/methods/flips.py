"""Methods that estimate how often labels flip: forward correction and importance re-weighting.

Of each finding, e_up = P(label 1 | truth 0) and e_down = P(label 0 | truth 1). Both methods begin with cross entropy;
the flips are estimated between two steps, from the network's own predictions, by anchors: at the films where the
network is surest that the label is 1, the truth is taken for 1, and what is missing to certainty is e_down.

DECISION: anchors are a quantile of the predictions among the entries that carry the label, not of all films: of a
finding that 2 % of films show, the 97th percentile of all is no positive.
"""

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax.memory import Memory
from repgls_jax.methods.record import Columns, Hyper, Seen, View
from repgls_jax.policies import Targets

ANCHOR = 0.97  # quantile, as in Patrini et al.'s experiments
MOST = 0.45  # of a flip rate; at 1/2 labels say nothing


def unflipped(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """The memory at the start, without flips."""
    del columns, hyper
    return Memory({}, {"flips": jnp.zeros((2, targets.y.shape[1]), jnp.float32)})


def estimated(view: View) -> Array:
    """[2, c] float32: e_up and e_down of each finding, 0 where nobody has the label."""
    p, (y, _, mask) = jax.nn.sigmoid(view.logits), view.targets
    lowest = jnp.nanquantile(jnp.where(mask & (y == 0), p, jnp.nan), 1.0 - ANCHOR, axis=0)
    highest = jnp.nanquantile(jnp.where(mask & (y == 1), p, jnp.nan), ANCHOR, axis=0)
    return jnp.nan_to_num(jnp.clip(jnp.stack([lowest, 1.0 - highest]), 0.0, MOST))


def learn_flips(memory: Memory, train: View, valid: View, hyper: Hyper) -> Memory:
    """The memory with estimated flips."""
    del valid, hyper
    return memory.replace(shared={**memory.shared, "flips": estimated(train)})


def in_force(seen: Seen) -> Array:
    """[2, 1, c]: the flips that the loss assumes: those estimated, times "scale", and those given."""
    given = jnp.stack([jnp.asarray(seen.hyper[name], jnp.float32) for name in ("up", "down")])
    return jnp.clip(seen.hyper["scale"] * seen.shared["flips"] + given[:, None], 0.0, MOST)[:, None]


def forward(z: Array, seen: Seen) -> Array:
    """Forward correction (Patrini et al., CVPR 2017, arXiv 1609.03683): cross entropy of the label under the noisy
    probability ``(1 - e_down) p + e_up (1 - p)``, in logarithms."""
    up, down = in_force(seen)
    one, zero = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    label_one = jnp.logaddexp(jnp.log1p(-down) + one, jnp.log(up) + zero)
    label_zero = jnp.logaddexp(jnp.log(down) + one, jnp.log1p(-up) + zero)
    return -jnp.where(seen.targets.y > 0, label_one, label_zero)


def unweighted(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """As :func:`unflipped`, with a posterior for each example."""
    shared = unflipped(columns, targets, hyper).shared
    return Memory({"posterior": jnp.full(targets.y.shape, 0.5, jnp.float32)}, shared)


def learn_posterior(memory: Memory, train: View, valid: View, hyper: Hyper) -> Memory:
    """The memory with estimated flips and what the network expects of each noisy label."""
    made = learn_flips(memory, train, valid, hyper)
    return made.replace(rows={"posterior": jax.nn.sigmoid(train.logits).astype(jnp.float32)})


def importance(seen: Seen) -> Array:
    """Weights of importance re-weighting (Liu and Tao, TPAMI 2016, arXiv 1411.7718).

    ``(P(label) - e) / ((1 - e_up - e_down) P(label))`` with e the rate of flips into the label, P of the noisy label as
    the network expected it when the flips were estimated. Weights are clipped to [0, 5] (DECISION); without
    flips they are 1.
    """
    up, down = in_force(seen)
    y, posterior = seen.targets.y, seen.rows["posterior"]
    p = jnp.clip(jnp.where(y > 0, posterior, 1.0 - posterior), 0.01, 1.0)
    into = jnp.where(y > 0, up, down)
    return jnp.clip((p - into) / ((1.0 - up - down) * p), 0.0, 5.0)
