"""The data that a config names: a data set to be built, or a build that is complete already."""

from collections.abc import Sequence
from typing import Any

import ml_collections

from repgls_jax import config as config_lib
from repgls_jax import data as data_lib
from repgls_jax.data import fetch
from repgls_jax.data.source import SPLITS, Source

# In the place of a data set's name: a build that is complete already, in a folder or a bucket.
BUILT = "build"


def make_source(config: ml_collections.ConfigDict, needed: Sequence[str] = SPLITS) -> Source:
    """The data set that the config names, read far enough to know its studies and splits.

    Args:
      config: of configs/luvit.py.
      needed: splits that must have images.

    Raises:
      ValueError: an option is missing or wrong, or a split is missing.
      FileNotFoundError: a folder or file that the config names does not exist.
    """
    options = config_lib.plain(config.data.options)
    if isinstance(options.get("columns"), dict):
        options["columns"] = {role: column for role, column in options["columns"].items() if column is not None}
    if options.get("source") == "":
        raise ValueError(f"data={config.data.dataset} needs its folder; add source=DIR to the config arguments")
    source = data_lib.dataset(config.data.dataset)(**options)
    missing = [split for split in needed if split not in source.splits()]
    if missing:
        raise ValueError(
            f"the data has no images for {', '.join(missing)}; training, choice and test need patients of their own. "
            "Add what is missing to the folder (a public data set's test set may be published apart); to the table of "
            "data=table add the split, or leave its column out (columns.split= empty) to have splits made"
        )
    return source


def described(config: ml_collections.ConfigDict) -> tuple[dict[str, Any], str]:
    """Manifest and SHA-256 of the build that the config names in the place of a data set.

    Raises:
      ValueError: no complete build, or one that the config does not fit.
      FileNotFoundError: nothing is there.
    """
    options = config.data.options
    manifest, digest = fetch.describe(options.source)
    missing = [split for split in SPLITS if split not in manifest["counts"]]
    if missing or manifest["image_size"] != options.image_size:
        raise ValueError(
            f"{options.source} has images of {manifest['image_size']} pixels for {', '.join(manifest['counts'])}; "
            f"expected {options.image_size} pixels (image_size=) for {', '.join(SPLITS)}"
        )
    return manifest, digest
