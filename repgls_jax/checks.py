"""What is wrong with a config, told before any work is done."""

import os
import pathlib

import jax
import ml_collections

from repgls_jax import config as config_lib
from repgls_jax import mixture, sources
from repgls_jax.data.features import SIMULATED
from repgls_jax.methods import METHODS, require_columns
from repgls_jax.methods import settings as method_settings
from repgls_jax.models import pretrained
from repgls_jax.train import luvit, sharding


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that would only fail after the data has been built.

    Raises:
      ValueError: names the setting and what would be right.
    """
    if config.task not in ("luvit", "rgn"):
        raise ValueError(f"task {config.task!r} is unknown; expected luvit or rgn")
    method_settings(config.policy)
    method = METHODS[config.policy.name]
    if config.train.mixup < 0:
        raise ValueError(
            f"train.mixup is {config.train.mixup}; expected a Beta distribution's parameter, or 0 for none"
        )
    if config.train.mixup and (method.mixes or method.update or method.exchange):
        raise ValueError(
            f"train.mixup is {config.train.mixup}, but {config.policy.name!r} mixes films itself or looks at single "
            "ones; set it to 0"
        )
    _check_files(config)
    _check_batches("train", config.train, method.mixes or config.train.mixup > 0)
    if not config.rgn.rates and (config.task == "rgn" or method.rates == "rgn"):
        _check_batches("rgn.train", config.rgn.train, False)
    if config.task == "luvit" and config.train.augment:
        _check_cpu()
    _check_model(config)
    _check_further(config)
    name = config.policy.name
    built = config.data.dataset == sources.BUILT and sources.described(config)[0]
    if config.task == "luvit" and METHODS[name].needs:
        simulated = built["simulated"] if built else sources.make_source(config).simulated
        require_columns(name, SIMULATED if simulated else ())


def _check_cpu() -> None:
    """Refuses devices without the CPU, on which films are augmented."""
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError:
        said = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX_PLATFORMS={said} leaves out the CPU, on which films are augmented; set JAX_PLATFORMS={said},cpu"
        ) from None


def _check_files(config: ml_collections.ConfigDict) -> None:
    """Refuses names of files that are not there."""
    for name, path in (("extract.evidence", config.extract.evidence), ("rgn.rates", config.rgn.rates)):
        if path and not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"{name}={path} is not there; expected the file that replaces the stage")


def _check_batches(name: str, train: ml_collections.ConfigDict, mixes: bool) -> None:
    """Refuses a batch that does not divide over the devices of this job, and micro-batches."""
    config_lib.choose("mesh", train.mesh, sharding.PRESETS)
    mesh = sharding.make_mesh(train.mesh, model_parallel=train.model_parallel)
    sharding.host_part(mesh)
    if train.accumulate < 1:
        raise ValueError(f"{name}.accumulate is {train.accumulate}; expected the number of micro-batches, 1 or more")
    multiple = sharding.batch_parts(mesh) * train.accumulate * (2 if mixes else 1)
    if train.batch_size % multiple:
        mixed = " of pairs to mix" if mixes else ""
        raise ValueError(
            f"{name}.batch_size is {train.batch_size}; {sharding.batch_parts(mesh)} parts of the mesh and "
            f"{train.accumulate} micro-batches{mixed} need a multiple of {multiple}: "
            f"--config.{name}.batch_size={sharding.round_up(train.batch_size, multiple)}"
        )


def _check_model(config: ml_collections.ConfigDict) -> None:
    """Refuses a network that cannot be built, or whose patches do not fit the films."""
    mesh = sharding.make_mesh(config.train.mesh, model_parallel=config.train.model_parallel)
    folder = config.model.pretrained
    backbone = pretrained.load(folder) if folder else None
    patch = luvit.make_model(config.model, 1, mesh, backbone).architecture.patch
    side = config.data.options.image_size
    if side % patch:
        raise ValueError(
            f"images of {side} pixels do not divide into the patches of {folder or config.model.name}, {patch} pixels; "
            f"set image_size={sharding.round_up(side, patch)}"
        )


def _check_further(config: ml_collections.ConfigDict) -> None:
    """Refuses further training sets that cannot be read, or not beside the run's own data."""
    further = mixture.configs(config)
    if not further:
        return
    built = config.data.dataset == sources.BUILT
    bits = sources.described(config)[0]["source"].get("bits", 8) if built else sources.make_source(config).bits
    for name, own in further.items():
        where = f"further training set {name!r}"
        try:
            source = sources.make_source(own, ("train",))
            _check_files(own)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        except (TypeError, AttributeError) as error:  # JSON gives options any type
            raise ValueError(f"{where}: an option is of the wrong type ({error})") from None
        if source.bits != bits:
            raise ValueError(
                f"{where} ({own.data.dataset}) has images of {source.bits} bits, the run ({config.data.dataset}) of "
                f"{bits}; all need the same, by --config.data.options.bits= where the data set has that option"
            )
