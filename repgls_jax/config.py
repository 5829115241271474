"""Arguments of config files: ``--config=configs/luvit.py:data=table,policy=expert``."""

import json
from typing import Any

import ml_collections
from absl import flags


def parse_arguments(text: str | None, defaults: dict[str, Any]) -> ml_collections.ConfigDict:
    """Config arguments, typed by their defaults.

    Args:
      text: "name=value,name=value", or None.
      defaults: every argument there is, with its default value (str, int, float or bool).

    Returns:
      The defaults with the given values in place.

    Raises:
      ValueError: an argument is unknown, given twice, without "=", or not of its default's type; all are named.
    """
    values: dict[str, Any] = {}
    problems = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            problems.append(f"{name!r} has no value; write {name}=VALUE")
        elif name not in defaults:
            problems.append(f"{name!r} is unknown; expected one of {', '.join(sorted(defaults))}")
        elif name in values:
            problems.append(f"{name!r} is given twice")
        else:
            try:
                values[name] = _typed(value, type(defaults[name]))
            except ValueError:
                problems.append(f"{name}={value!r} is not of type {type(defaults[name]).__name__}")
    if problems:
        raise ValueError("config arguments: " + "; ".join(problems))
    return ml_collections.ConfigDict({**defaults, **values})


def _typed(value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    return kind(value)


def choose(name: str, value: str, choices: Any) -> Any:
    """``choices[value]``; raises ValueError that names the argument and the choices when there is none."""
    if value not in choices:
        raise ValueError(f"config argument {name}={value!r}; expected one of {', '.join(choices)}")
    return choices[value]


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as nested dicts of JSON values, for hashes and files."""
    return json.loads(config.to_json_best_effort())


def parse_flags(argv: list[str]) -> list[str]:
    """A ``flags_parser`` for ``absl.app.run`` that ends with the reason alone.

    A config file that refuses its arguments would otherwise be told as a traceback through the flags library.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        reason = str(error).strip().splitlines()[-1]
    except (KeyError, AttributeError) as error:  # --config.x.y=... of a field that the config lacks
        reason = f"no such setting: {' '.join(str(error.args[0]).split())}"
    raise SystemExit(f"error: {reason.removeprefix('ValueError: ')}")
