"""The arms: methods with what they are given, and their tuning budgets, which are all of one size.

An arm is a method of :mod:`repgls_jax.methods` under some settings. Its trials are learning rates and values of its own
hyperparameter; the one with the best noisy validation score on the tuning seed is used on all other seeds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from repgls_jax.methods import METHODS

TRIALS = 3
LEARNING_RATES = (4e-3, 8e-3, 2e-3)
CHEXPERT = ("u_ones", "u_zeros", "u_ignore", "u_multiclass", "u_selftrained")
GROUPS = {
    "reference": "Plain labels",
    "chexpert": "Uncertain labels by rule",
    "constant": "One rate for all",
    "noise": "Learning from noisy labels",
    "rates": "Rates of each label",
    "control": "Controls: the same rates, shuffled",
    "likelihood": "Report likelihood",
    "bound": "Bounds: not to be had from reports",
    "negative": "Negative rates for plain wording",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
      method: key in METHODS.
      group: key in :data:`GROUPS`.
      policy: fields of PolicyConfig.
      hyper: hyperparameters that are the same in every trial.
      refined: whether the rates are those of the RGN after guided refinement.
      believed: whether what the reader believed, of every finding, takes the place of what the report says.
      control: the arm with the same rates, shuffled; "" without.
      main: whether it runs in the main condition; the others are studies of their own.
      note: one line; the method's own where empty.
    """

    method: str
    group: str
    policy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    refined: bool = False
    believed: bool = False
    control: str = ""
    main: bool = True
    note: str = ""

    @property
    def words(self) -> str:
        """One line for tables."""
        return self.note or METHODS[self.method].words

    def trials(self) -> list[dict[str, float]]:
        """The settings to choose from, :data:`TRIALS` of them; the first are the default ones.

        A method without hyperparameters of its own has its budget for learning rates; one with some tries the next
        value in the grid of its first one, at the first learning rate.
        """
        own = {name: p for name, p in METHODS[self.method].hyper.items() if name not in self.hyper}
        start = {name: p.default for name, p in METHODS[self.method].hyper.items()} | dict(self.hyper)
        first = {"learning_rate": LEARNING_RATES[0], **start}
        faster = {**first, "learning_rate": LEARNING_RATES[1]}
        if not own:
            return [first, faster, {**first, "learning_rate": LEARNING_RATES[2]}]
        name, parameter = next(iter(own.items()))
        return [first, faster, {**first, name: next(v for v in parameter.grid if v != parameter.default)}]


def _constant(rate: float) -> Arm:
    return Arm("constant", "constant", hyper={"constant": rate}, note=f"the likelier side, r = {rate:+g} for all")


_SHARP: Mapping[str, Any] = {"rho": 0.5}
_BARE: Mapping[str, Any] = {"warmup": 0.0, "ramp": 0.0}

# In the order in which they are run: what the claims rest on first.
_KNOWN: dict[str, Arm] = {
    "hard": Arm("hard", "reference"),
    "u_ones": Arm("u_ones", "chexpert"),
    "u_zeros": Arm("u_zeros", "chexpert"),
    "u_ignore": Arm("u_ignore", "chexpert"),
    "lsr_ones": Arm("lsr_ones", "chexpert"),
    "lsr_zeros": Arm("lsr_zeros", "chexpert"),
    "clean": Arm("clean", "bound"),
    "expert": Arm("expert", "rates", control="permuted"),
    "permuted": Arm("permuted", "control"),
    "rgn": Arm("rgn", "rates", control="rgn_permuted"),
    "rgn_permuted": Arm("rgn_permuted", "control"),
    "u_multiclass": Arm("u_multiclass", "chexpert"),
    "u_selftrained": Arm("u_selftrained", "chexpert"),
    "report_likelihood": Arm("report_likelihood", "likelihood"),
    "fitted": Arm("fitted", "likelihood"),
    "relearned": Arm("relearned", "likelihood"),
    "bridge": Arm("bridge", "likelihood"),
    "oracle": Arm("oracle", "bound"),
    "oracle_likelihood": Arm(
        "report_likelihood", "bound", believed=True, note="report likelihood of the simulated reader's own belief"
    ),
    "mentions": Arm("mentions", "reference"),
    "smooth_.2": _constant(0.2),
    "sharpen_.2": _constant(-0.2),
    "smooth_.4": _constant(0.4),
    "sharpen_.4": _constant(-0.4),
    "rgn_refined": Arm("rgn", "rates", refined=True, control="rgn_permuted", note="RGN rates, refined on 200 studies"),
    "sharp": Arm("expert", "negative", _SHARP, main=False, note="warm-up and margin cap"),
    "sharp_no_warmup": Arm("expert", "negative", {**_SHARP, **_BARE}, main=False, note="margin cap alone"),
    "sharp_no_cap": Arm("expert", "negative", {**_SHARP, "margin_cap": 1e9}, main=False, note="warm-up alone"),
    "sharp_bare": Arm("expert", "negative", {**_SHARP, **_BARE, "margin_cap": 1e9}, main=False, note="neither"),
}


def arms() -> dict[str, Arm]:
    """Name -> arm. Every method has one: those without an entry of their own learn from noisy labels."""
    named = {arm.method for arm in _KNOWN.values()}
    return {**_KNOWN, **{name: Arm(name, "noise") for name in METHODS if name not in named}}


# What further conditions are tried on.
SHORT = ("hard", "u_ones", "expert", "permuted", "rgn", "report_likelihood", "clean")
