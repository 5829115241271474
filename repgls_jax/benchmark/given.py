"""What an arm is given of a hospital: label columns with the rates that its method reads."""

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax import rates as rates_lib
from repgls_jax.benchmark.arms import Arm
from repgls_jax.methods import METHODS
from repgls_jax.policies import PolicyConfig
from repgls_jax.train import labels as labels_lib

GROUPS = 10  # of certainties whose rates are refined together
COLUMNS = ("state", "p", "observed")  # what every method may read


def part(made: labels_lib.Columns, start: int, stop: int) -> labels_lib.Columns:
    """Rows ``start`` to ``stop`` of every column."""
    return {name: values[start:stop] for name, values in made.items()}


def rates(made: labels_lib.Columns, arm: Arm, config: PolicyConfig, seed: int) -> np.ndarray | None:
    """The rates [n, c] float32 that the arm's method reads, shuffled if it says so; None where it reads none.

    Args:
      made: from :func:`repgls_jax.benchmark.conditions.columns`, with the RGN's rates.
      arm: which.
      config: its settings.
      seed: of the shuffle.
    """
    policy = METHODS[arm.method].policy
    if policy.rates == "":
        return None
    certainty = made["belief"] if policy.rates == "belief" else made["p"]
    y, rate = rates_lib.expert_rates(certainty, config.rho, config.r_blank)
    if policy.rates == "rgn":
        # What the RGN had nothing to read of keeps the expert's rate, as in labels.with_rates.
        rate = np.where(np.isnan(made["read"]), rate, made["read"]).astype(np.float32)
    if policy.permuted:
        rate = rates_lib.permute(rate, y, ~np.isnan(made["p"]) & made["observed"], seed)
    return rate


def believed(made: labels_lib.Columns) -> labels_lib.Columns:
    """The same with the reader's belief in the place of what the report says: an upper bound of any reading of it."""
    return {**made, "p": made["belief"], "state": findings_lib.states_of(made["belief"])}


def columns(made: labels_lib.Columns, arm: Arm, rate: np.ndarray | None) -> labels_lib.Columns:
    """The columns that the method reads, and no other."""
    names = (*COLUMNS, *METHODS[arm.method].needs)
    kept = {name: made[name] for name in names}
    return kept if rate is None else {**kept, "rate": rate}


def validation(made: labels_lib.Columns, blank: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [v, c] and mask [v, c] of the noisy kind; blanks count as the condition has it, for every arm alike."""
    labels, mask = labels_lib.noisy_reference(made)
    return labels, mask & ((made["state"] != findings_lib.NOT_MENTIONED) | (blank == "negative"))


def groups(p: np.ndarray) -> np.ndarray:
    """Group [n, c] of each entry for guided refinement: the tenth of its certainty; -1 where nothing is said."""
    known = ~np.isnan(p)
    return np.where(known, np.minimum(np.nan_to_num(p) * GROUPS, GROUPS - 1), -1).astype(np.int32)
