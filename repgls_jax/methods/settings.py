"""A method's settings, read from a config: its name, its hyperparameters, and what all methods share."""

import dataclasses
from collections.abc import Container

import ml_collections

from repgls_jax.methods.record import Hyper, Scalar
from repgls_jax.methods.table import METHODS
from repgls_jax.policies import PolicyConfig

# Hyperparameters of these names are fields of the config.
SHARED = tuple(f.name for f in dataclasses.fields(PolicyConfig))


def settings(config: ml_collections.ConfigDict) -> PolicyConfig:
    """The settings in ``config.policy``.

    Raises:
      ValueError: the method or a hyperparameter is unknown, or a value is outside its range; all are named.
    """
    made = PolicyConfig(**{**config, "hyper": dict(config.get("hyper", {}))})
    problems = made.problems()
    if made.name not in METHODS:
        problems.append(f"policy name {made.name!r}: expected one of {', '.join(METHODS)}")
    else:
        problems += _wrong(made)
    if problems:
        raise ValueError("; ".join(problems))
    return made


def _wrong(config: PolicyConfig) -> list[str]:
    """Hyperparameters that the method does not have, or not with this value."""
    own = {name: p for name, p in METHODS[config.name].hyper.items() if name not in SHARED}
    problems = []
    for name, value in config.hyper.items():
        if name not in own:
            known = f"expected one of {', '.join(own)}" if own else "it has none of its own"
            problems.append(f"policy hyper {name!r}: unknown to {config.name!r}; {known}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not own[name].holds(value):
            problems.append(f"policy hyper {name} {value}: expected a number in [{own[name].low}, {own[name].high}]")
    return problems


def values(config: PolicyConfig) -> dict[str, float]:
    """Every hyperparameter of the config's method, by name."""
    made = {}
    for name, parameter in METHODS[config.name].hyper.items():
        made[name] = getattr(config, name) if name in SHARED else config.hyper.get(name, parameter.default)
    return made


def applied(config: PolicyConfig, hyper: Hyper) -> PolicyConfig:
    """The config with those ``hyper`` in force that are fields of it; they may be traced."""
    shared: dict[str, Scalar] = {name: value for name, value in hyper.items() if name in SHARED}
    return dataclasses.replace(config, **shared) if shared else config  # type: ignore[arg-type]


def require_columns(name: str, columns: Container[str]) -> None:
    """Refuses a method whose labels the data set does not have.

    Raises:
      ValueError: a column is missing; the message names it and the methods that can do without.
    """
    missing = [column for column in METHODS[name].needs if column not in columns]
    if missing:
        usable = [other for other, method in METHODS.items() if all(n in columns for n in method.needs)]
        raise ValueError(
            f"policy {name!r} needs {', '.join(missing)}, which only simulated data has; "
            f"choose one of {', '.join(usable)}"
        )
