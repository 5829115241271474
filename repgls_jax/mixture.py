"""Further training sets of a run, from its config.

``config.data.also`` holds them: name -> ``dataset`` (of :data:`repgls_jax.data.DATASETS`), ``options`` of that data
set, ``weight``: how many images are drawn from it for each one of the config's own data set, and ``evidence``: a file
that takes the place of reading its reports, as ``config.extract.evidence`` does for the config's own. Without weights
every image of all the sets is as likely as any other. Names are free, and say which set is meant in records and pages.
As the file that the config argument ``also`` names:

    {"nih": {"dataset": "nih", "options": {"source": "DIR"}, "weight": 0.5}}

The config's own data set stays the first: its vocabulary is the target, and validation, test and scores are its alone.
Of a further set only the training split is read, and need be there. That no patient of the run's test is in a further
set is for the user to know; only sets of one folder, and the same simulated patients, are refused.
"""

import inspect
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from repgls_jax import config as config_lib
from repgls_jax import data as data_lib
from repgls_jax.methods import METHODS
from repgls_jax.phantom import PhantomConfig

FIELDS = ("dataset", "options", "weight", "evidence")
LIGHTEST, HEAVIEST = 1e-6, 1e6  # weights
_MAX_BYTES = 2**20  # of the file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # a setting is named after it, which knows no dots


def read(path: str) -> dict[str, Any]:
    """The sets that a JSON file describes, for ``config.data.also``; {} for the path "".

    Raises:
      ValueError: the file cannot be read, is not an object of JSON, names a set or field twice, or gives a set a name
        that is no name of a setting.
    """
    if not path:
        return {}
    try:
        with pathlib.Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes; expected a description of further training sets")
        made = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise ValueError(f"also={path}: {error.strerror}; expected a JSON file of further training sets") from None
    except RecursionError:
        raise ValueError(f"also={path}: nested too deeply; expected an object: name -> {_fields()}") from None
    except ValueError as error:  # of JSON, of UTF-8, or a repeated name
        raise ValueError(f"also={path}: {error}") from None
    if not isinstance(made, dict):
        raise ValueError(f"also={path} holds a {type(made).__name__}; expected an object: name -> {_fields()}")
    wrong = [name[:40] for name in made if not _NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"also={path} names a set {wrong[0]!r}; expected 1 to 40 letters, digits, '-' and '_'")
    for one in made.values():
        if isinstance(one, dict) and type(one.get("weight")) is int and abs(one["weight"]) <= HEAVIEST:
            one["weight"] = float(one["weight"])  # so that a flag may set it to a fraction
    return made


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands twice")
    return dict(pairs)


def _fields() -> str:
    return "{" + ", ".join(FIELDS) + "}"


def configs(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """The run's config with each further set in the place of its own data, in the order of the sets' names.

    ``image_size`` is the run's for all of them, and ``bits`` where both data sets have the option.

    Raises:
      ValueError: a set is not described as it should be, or the run cannot use any; the message names the set.
    """
    sets = config_lib.plain(config)["data"]["also"]
    if sets and config.task == "rgn":
        raise ValueError(f"data.also names {', '.join(sets)}, but task rgn reads one data set; leave them out")
    needs = METHODS[config.policy.name].needs
    if sets and needs:
        raise ValueError(
            f"policy {config.policy.name!r} reads {', '.join(needs)} of every finding and masks none, so further sets "
            "(data.also) cannot be mixed under it; choose another policy or one data set"
        )
    weights(config)
    return {name: _config(config, name, sets[name]) for name in sorted(sets)}


def _config(config: ml_collections.ConfigDict, name: str, described: Any) -> ml_collections.ConfigDict:
    where = f"further training set {name!r}"
    if not isinstance(described, Mapping) or not isinstance(described.get("options", {}), Mapping):
        raise ValueError(f"{where} is {described!r}; expected {_fields()}, options being names with values")
    unknown = sorted(set(described) - set(FIELDS))
    if unknown or "dataset" not in described:
        said = f"has the unknown fields {', '.join(unknown)}" if unknown else "has no dataset"
        raise ValueError(f"{where} {said}; expected {_fields()}")
    options = dict(described.get("options", {}))
    try:
        signature = inspect.signature(data_lib.dataset(described["dataset"]))
        shared = {"image_size": config.data.options.image_size}
        if "bits" in config.data.options and "bits" in signature.parameters:
            shared["bits"] = config.data.options.bits
        signature.bind(**(shared | options))
    except (TypeError, ValueError, ImportError, AttributeError) as error:  # the last two of "package.module:function"
        raise ValueError(f"{where}: {error} (dataset {described['dataset']})") from None
    for option, ours in shared.items():
        if options.get(option, ours) != ours:
            raise ValueError(f"{where} has {option} {options[option]}, the run {ours}; leave it out")
    options |= shared  # 64.0 would be no number of pixels
    _apart(config, described["dataset"], options, where)
    made = ml_collections.ConfigDict(config_lib.plain(config))
    made.data = {"dataset": described["dataset"], "options": options, "also": {}}
    # Files about the run's own reports.
    made.extract.evidence, made.rgn.rates = str(described.get("evidence", "")), ""
    return made


def _apart(config: ml_collections.ConfigDict, dataset: str, options: Mapping[str, Any], where: str) -> None:
    """Refuses a set with the run's own patients, as far as its description tells."""
    ours = config.data.options
    sources = [str(given.get("source", "")) for given in (options, ours)]
    same = all(sources) and len({pathlib.Path(source).resolve() for source in sources}) == 1
    if same:
        raise ValueError(
            f"{where} reads {sources[0]}, the run's own data: it could train on patients of the test split"
        )
    if dataset == config.data.dataset == "phantom" and options.get("seed", PhantomConfig.seed) == ours.get("seed"):
        raise ValueError(
            f"{where} simulates the run's own patients: it could train on those of the test split; give it a seed "
            f"other than {ours.seed}"
        )


def weights(config: ml_collections.ConfigDict) -> list[float]:
    """Weights of the run's own set, which is 1, and of the further ones by name; [] where none is given.

    Raises:
      ValueError: only some of the sets have a weight, or one is not a number from LIGHTEST to HEAVIEST.
    """
    sets = config_lib.plain(config)["data"]["also"]
    given = {name: one["weight"] for name, one in sorted(sets.items()) if isinstance(one, Mapping) and "weight" in one}
    if not given:
        return []
    if len(given) < len(sets):
        lacking = ", ".join(sorted(set(sets) - set(given)))
        raise ValueError(f"further training sets {lacking} have no weight but {', '.join(given)} do; give all or none")
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not LIGHTEST <= weight <= HEAVIEST:
            raise ValueError(
                f"weight of the further training set {name!r} is {weight!r:.40}; expected a positive number, "
                f"{LIGHTEST:g} to {HEAVIEST:g}"
            )
    return [1.0, *map(float, given.values())]
