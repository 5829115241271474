"""From the config to a plan and its units."""

import pathlib

import ml_collections

from repgls_jax.benchmark import arms, conditions, grid, hospital, prepare, runs
from repgls_jax.models import vit
from repgls_jax.train.journal import Journal


def units(config: ml_collections.ConfigDict) -> list[grid.Unit]:
    """The units that the config asks for.

    Raises:
      ValueError: a condition, arm or half is unknown.
    """
    seeds = tuple(range(1, config.seeds + 1))
    names = tuple(config.conditions) or tuple(conditions.CONDITIONS)
    return grid.units(names, tuple(config.arms) or tuple(arms.arms()), seeds, config.few, tuple(config.halves))


def main_units(config: ml_collections.ConfigDict) -> list[grid.Unit]:
    """The units of the main condition alone, whatever conditions the config asks for."""
    other = config.copy_and_resolve_references()
    other.conditions = ("main",)
    return units(other)


def plan(config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal) -> grid.Plan:
    """The plan; trains encoder and RGN at the other hospital unless that has been done.

    Raises:
      ValueError: a setting is wrong.
    """
    other = prepare.elsewhere(config.other, root, journal)
    return grid.Plan(
        root=root,
        counts=hospital.Counts(**config.counts),
        schedule=runs.Schedule(**config.schedule),
        read_out=vit.Architecture(depth=1, **config.read_out),
        tuning=config.tuning,
        seeds=tuple(range(1, config.seeds + 1)),
        main=dict(config.main),
        replicates=config.replicates,
        other=other,
    )
