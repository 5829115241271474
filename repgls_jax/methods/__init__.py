"""Methods of training on noisy and uncertain labels: one dict of records, one trainer for all.

A method (:class:`record.Method`) is a label policy, which makes targets (y, r, mask) of what reports say, and a loss on
logits, with what else it takes: hyperparameters, a memory, a second network, something done between steps. The train
step masks, averages, differentiates and remembers, for all of them alike.

    method = METHODS["elr"]
    config = PolicyConfig("elr")                           # or settings(config.policy)
    hyper = values(config) | {"weight": traced}            # numbers; any may be traced
    columns = {"state": ..., "p": ..., "observed": ...}    # [n, c], and "rate" where method.rates says so
    memory = start(config, hyper, columns)                 # None for most methods
    loss = luvit.make_loss(model, config, steps, 0.0, hyper=hyper)     # also within a traced function
    state = create(params, tx, seed, memory=memory, peer=second if method.networks == 2 else None)
    state, scalars = make_train_step(loss, tx)(state, batch)           # the batch has a column "index", [b] int
    if method.hook and int(state.step) in method.hook.steps(steps):    # pure, arrays to arrays
        state = state.replace(memory=method.hook.apply(state.memory, view(...train), view(...valid), hyper))
    logits = model.apply({"params": state.weights}, images)["logits"]  # of the first network, whatever the method

``model.apply`` gets the batch's "image" as it is (tokens of a frozen encoder will do) and returns "logits" and "rate"
[b, c], and "third" where ``method.third``. A hook's moments are steps of the run, not of the memory: they are the same
for all trials, so a scan over steps is cut there.
"""

import jax
from jax import Array

from repgls_jax.memory import Memory
from repgls_jax.methods.record import Columns, Hook, Hyper, Method, Parameter, Seen, View
from repgls_jax.methods.settings import SHARED, applied, require_columns, settings, values
from repgls_jax.methods.table import METHODS
from repgls_jax.policies import PolicyConfig, Targets

__all__ = [
    "METHODS",
    "SHARED",
    "Columns",
    "Hook",
    "Hyper",
    "Method",
    "Parameter",
    "Seen",
    "View",
    "applied",
    "require_columns",
    "settings",
    "start",
    "targets",
    "values",
    "view",
]


def targets(config: PolicyConfig, hyper: Hyper, columns: Columns, seed: int = 0) -> Targets:
    """What the config's method makes of the labels of a split, [n, c]; what it draws anew each step is drawn once."""
    return METHODS[config.name].policy.targets(columns, jax.random.key(seed), applied(config, hyper))


def start(config: PolicyConfig, hyper: Hyper, columns: Columns) -> Memory | None:
    """The memory before the first step, or None. Pure, and can be traced.

    Args:
      config: names the method.
      hyper: from :func:`values`.
      columns: of the training split, [n, c] each, in the order of the column "index".
    """
    method = METHODS[config.name]
    return method.memory(columns, targets(config, hyper, columns), hyper) if method.memory else None


def view(config: PolicyConfig, hyper: Hyper, columns: Columns, logits: Array) -> View:
    """What a hook sees of a split, given the logits [n, c] of its images."""
    return View(logits, columns, targets(config, hyper, columns))
