"""A trained LU-ViT, wherever it is kept: the folder of a run, of its checkpoints, or of an export."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from repgls_jax import findings as findings_lib
from repgls_jax.exports import files, native
from repgls_jax.models import luvit, vit
from repgls_jax.train import checkpoint, manifest, place, sharding
from repgls_jax.train import luvit as luvit_train

RECORD = "run.json"  # what a training run says of itself: config, stage folders, vocabulary
NATIVE = "native"  # the folder of an export that :func:`load` reads


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with everything that is needed to use it.

    Attributes:
      model: computes in float32, whatever it was trained in.
      params: its parameters, unrolled blocks, on every device of the mesh.
      vocabulary: the findings, in the order of the axis c.
      input: what images must be, see :func:`repgls_jax.models.luvit.input_contract`.
      preprocessing: how a film becomes such an image: ``fit``, see :func:`repgls_jax.data.images.square`.
      thresholds: rule -> finding -> threshold of the probability (None where the rule gives none), or None.
      reference: what films of the training set look like, or None.
      source: where it comes from, JSON: kind, name, step, metrics, policy, pretrained; of an export also what the
        thresholds were chosen on.
      where: the path, for messages.
    """

    model: luvit.LUViT
    params: Any
    vocabulary: findings_lib.Vocabulary
    input: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    thresholds: Mapping[str, Any] | None
    reference: Mapping[str, Any] | None
    source: Mapping[str, Any]
    where: str

    @property
    def size(self) -> int:
        """Pixels of a side of the images."""
        return self.input["size"]

    @property
    def description(self) -> dict[str, Any]:
        """The architecture as JSON."""
        return luvit.describe(self.model)

    @functools.cached_property
    def apply(self) -> luvit_train.Forward:
        """Jitted: (params, images [b, h, w, 1]) -> probabilities, rates; for :func:`repgls_jax.train.luvit.predict`."""
        return luvit_train.make_forward(self.model)

    def forward(self, images: Any) -> tuple[Array, Array]:
        """Images [b, size, size, 1] as ``input`` says -> probabilities in (0, 1) and rates in (-1, 1), float32 [b, c].

        Raises:
          ValueError: the images are of another type or size.
        """
        luvit.require_images(self.input, images, self.where)
        return self.apply(self.params, images)


def load(path: epath.PathLike, mesh: Mesh | None = None, which: checkpoint.Which = "latest") -> Trained:
    """Reads a trained model.

    Args:
      path: folder of a LU-ViT run; of its checkpoints, local or gs://; or of an export (launch/export.py) or its part
        "native".
      mesh: over which parameters are replicated; None for this process's first device.
      which: of a run's checkpoints: "latest", "best" (by the validation's mean AUROC) or a step.

    Raises:
      FileNotFoundError: nothing of the kind is there.
      ValueError: what is there is damaged, of another version, or no LU-ViT; or ``which`` does not fit.
      repgls_jax.train.manifest.DamagedError: no checkpoint that could be used is sound.
    """
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    if manifest.remote(epath.Path(path)):
        return _of_checkpoints(epath.Path(path), mesh, which, {}, str(path))
    folder = pathlib.Path(path)
    exported = next((f for f in (folder, folder / NATIVE) if native.is_native(f)), None)
    if exported is not None:
        return _of_export(exported, mesh, which)
    if (folder / RECORD).exists() or (folder / "checkpoints").exists() or (folder / place.POINTER).exists():
        where = place.of(folder)
        if not where.is_dir():
            raise FileNotFoundError(f"{folder} holds no folder 'checkpoints'; expected the folder of a LU-ViT run")
        record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).exists() else {}
        return _of_checkpoints(where, mesh, which, _preprocessing(folder, record), str(folder), folder.resolve().name)
    if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir() if child.is_dir()):
        return _of_checkpoints(epath.Path(folder), mesh, which, {}, str(folder))
    if (folder / native.CONFIG).is_file() and "model_type" in files.read_json(folder / native.CONFIG):
        raise ValueError(
            f"{folder} holds a Hugging Face encoder, which knows no findings; name the export's part 'native', or "
            "train on it with --config.model.pretrained"
        )
    raise FileNotFoundError(
        f"{folder} {'holds no trained LU-ViT' if folder.is_dir() else 'does not exist'}; expected the folder of a run, "
        "of its checkpoints, or of an export"
    )


def encoder(found: Trained, batch: int = 256) -> Callable[[np.ndarray], np.ndarray]:
    """The frozen encoder: images [n, size, size, 1] as ``input`` says -> tokens float16 [n, l, d], ``batch`` at a time.

    The tokens are what the model takes in the place of images, see :class:`repgls_jax.models.luvit.LUViT`.
    """
    network = vit.VisionTransformer(found.model.architecture)

    @jax.jit
    def apply(params: Any, images: Array) -> Array:
        out: Any = network.apply({"params": params}, luvit.normalize(images))
        return out.astype(jnp.float16)

    def encode(images: np.ndarray) -> np.ndarray:
        parts = []
        for at in range(0, len(images), batch):
            some = images[at : at + batch]
            whole = np.resize(some, (batch, *images.shape[1:]))  # one compiled size
            parts.append(np.asarray(apply(found.params["encoder"], whole))[: len(some)])
        return np.concatenate(parts)

    return encode


def _of_export(folder: pathlib.Path, mesh: Mesh, which: checkpoint.Which) -> Trained:
    model, params, parts = native.read(folder)
    step = parts["source"].get("step")
    if which not in ("latest", step):
        raise ValueError(f"{folder} is an export, of step {step} alone; {which!r} can be had of the run that made it")
    told = parts["vocabulary"]
    name, version = told.get("name"), told.get("version")
    if not isinstance(name, str) or type(version) is not int:
        raise ValueError(f"{folder / native.CONFIG}: vocabulary has name {name!r} and version {version!r}")
    vocabulary = findings_lib.Vocabulary(name, version, tuple(told["findings"]))
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    kept = {name: parts[name] for name in ("input", "preprocessing", "thresholds", "reference", "source")}
    return Trained(model, placed, vocabulary, **kept, where=str(folder))


def _of_checkpoints(
    folder: epath.Path,
    mesh: Mesh,
    which: checkpoint.Which,
    preprocessing: dict[str, Any],
    where: str,
    name: str | None = None,
) -> Trained:
    checkpoints = checkpoint.Checkpoints(folder)
    try:
        step = checkpoints.choose(which)
        meta = checkpoints.meta(which if step is None else step)  # raises where there is none
        missing = [part for part in ("model", "vocabulary", "findings", "input") if part not in meta]
        if missing:
            raise ValueError(f"the checkpoint in {where} lacks {', '.join(missing)}: it is not of a LU-ViT")
        model = native.model_of(meta["model"], meta["findings"], meta["input"], f"the checkpoint in {where}")
        params = luvit.evaluated(checkpoints.restore_params(mesh, step if step is not None else which))
        params = vit.unstack_blocks(params)
        metrics = {} if step is None else checkpoints.metrics(step)
    finally:
        checkpoints.close()
    source = {
        "kind": "checkpoint",
        "name": name or folder.name,
        "step": step,
        "metrics": metrics,
        "policy": meta.get("policy"),
        "pretrained": meta.get("pretrained"),
    }
    return Trained(
        model,
        params,
        _vocabulary(meta["vocabulary"], meta["findings"]),
        meta["input"],
        {"fit": "pad"} | preprocessing,
        None,
        None,
        source,
        where,
    )


def _vocabulary(name: str, found: list[str]) -> findings_lib.Vocabulary:
    """That of a checkpoint, which does not tell the version; 0 where the findings are not those known here."""
    known = findings_lib.VOCABULARIES.get(name)
    version = known.version if known is not None and known.findings == tuple(found) else 0
    return findings_lib.Vocabulary(name, version, tuple(found))


def _preprocessing(folder: pathlib.Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """How a run's films became images, as its build says; {} where the build is not beside it, or draws its films."""
    data = record.get("stages", {}).get("data")
    path = folder.parent / str(data) / "set" / "manifest.json"
    if data is None or not path.is_file():
        return {}
    source = json.loads(path.read_text())["source"]
    return {name: source[name] for name in ("fit", "max_megapixels") if name in source}
