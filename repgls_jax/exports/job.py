"""Makes an export: every format written, read again in a fresh process, compared, and only then given its name.

OUTPUT/README.md       the model card
OUTPUT/manifest.json   the comparisons, versions, and the hash of every other file
OUTPUT/native/         see :mod:`repgls_jax.exports.native`
OUTPUT/huggingface/    see :mod:`repgls_jax.exports.huggingface`
OUTPUT/stablehlo/      see :mod:`repgls_jax.exports.stablehlo`
OUTPUT/onnx/           see :mod:`repgls_jax.exports.onnx`
"""

import dataclasses
import importlib.resources
import importlib.util
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from repgls_jax import __version__, policies, trained
from repgls_jax.exports import card, compare, files, huggingface, native, onnx, stablehlo
from repgls_jax.exports.facts import Facts, gather
from repgls_jax.models import luvit, vit
from repgls_jax.train import checkpoint, sharding
from repgls_jax.train.journal import Journal

MANIFEST, CARD = "manifest.json", "README.md"
_VERSIONS = ("jax", "jaxlib", "flax", "numpy", "safetensors")


@dataclasses.dataclass(frozen=True)
class Format:
    """One form of an export.

    Attributes:
      holds: what, for the model card.
      why_not: (model) -> why it cannot be made of this model here, or "".
      write: (folder, model, facts) writes it.
      compare: (folder, model, images) -> the comparison.
      versions: packages that read it.
      python: that has them.
    """

    holds: str
    why_not: Callable[[trained.Trained], str]
    write: Callable[[pathlib.Path, trained.Trained, dict[str, Any]], None]
    compare: Callable[[pathlib.Path, trained.Trained, np.ndarray], dict[str, Any]]
    versions: tuple[str, ...] = _VERSIONS
    python: Callable[[], str] = lambda: sys.executable


def _outputs(model: trained.Trained, images: np.ndarray) -> dict[str, np.ndarray]:
    probability, rate = model.forward(images)
    return {"probability": np.asarray(probability), "rate": np.asarray(rate)}


def _features(model: trained.Trained, images: np.ndarray) -> dict[str, np.ndarray]:
    encoder = vit.VisionTransformer(model.model.architecture)
    tokens = jax.jit(encoder.apply)({"params": model.params["encoder"]}, luvit.normalize(jax.numpy.asarray(images)))
    return {"features": np.asarray(tokens)}


def _write_native(folder: pathlib.Path, model: trained.Trained, parts: dict[str, Any]) -> None:
    native.write(folder, jax.device_get(model.params), parts)


def _write_stablehlo(folder: pathlib.Path, model: trained.Trained, parts: dict[str, Any]) -> None:
    contract = {name: part for name, part in parts.items() if name != "model"}
    stablehlo.write(folder, model.model, model.params, contract)
    _loader(folder, "stablehlo")
    (folder / CARD).write_text(
        f"# The model as StableHLO\n\n{card.DISCLAIMER}\n\n`model.stablehlo` was written by jax.export "
        f"{jax.__version__} for {', '.join(stablehlo.PLATFORMS)}; JAX reads it for at least six months from that "
        f"release. It takes films [b, {model.size}, {model.size}, 1] {model.input['dtype']}, 0 black, and gives "
        "probabilities and rates [b, findings] in the order of `contract.json`; b may be any number.\n\n"
        "```python\nimport jax\nfrom jax import export\n\n"
        'program = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))\n'
        "probability, rate = jax.jit(program.call)(films)\n```\n\n"
        "`python load.py FILMS.npy OUTPUT.npz` does the same.\n"
    )


def _write_huggingface(folder: pathlib.Path, model: trained.Trained, parts: dict[str, Any]) -> None:
    del parts
    name = huggingface.write(folder, model.model.architecture, jax.device_get(model.params["encoder"]), model.size)
    _loader(folder, "huggingface")
    (folder / CARD).write_text(
        f"# The encoder as a {name} of transformers\n\n{card.DISCLAIMER}\n\nThe encoder alone: its `last_hidden_state` "
        "is what LU-ViT's finding queries read. Queries and heads have no counterpart in that library; a pooling layer "
        "that it adds is not trained.\n\n"
        f'```python\nimport transformers\n\nencoder = transformers.{name}.from_pretrained("THIS_FOLDER")\n```\n\n'
        "`load.py` shows which pixels it takes. To train on it here: `--config.model.pretrained=THIS_FOLDER`.\n"
    )


def _write_onnx(folder: pathlib.Path, model: trained.Trained, parts: dict[str, Any]) -> None:
    onnx.write(folder, jax.device_get(model.params), parts)
    _loader(folder, "onnx")


def _compare_onnx(folder: pathlib.Path, model: trained.Trained, images: np.ndarray) -> dict[str, Any]:
    command = [onnx.interpreter(), "-P", str(folder / "load.py")]
    return compare.compare(command, _outputs(model, images), images, (1, compare.FILMS))


def _why_not_huggingface(model: trained.Trained) -> str:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed, which it is compared with: pip install -e '.[labels]'"
    try:
        huggingface.family_of(model.model.architecture, model.size)
    except huggingface.NoFamilyError as error:
        return str(error)
    return ""


def _by_loader(
    outputs: Callable[[trained.Trained, np.ndarray], dict[str, np.ndarray]], batches: tuple[int, ...]
) -> Any:
    """A comparison by the load.py of a format, isolated from this package's own path."""
    return lambda folder, model, images: compare.compare(
        [sys.executable, "-P", str(folder / "load.py")], outputs(model, images), images, batches
    )


def _compare_native(folder: pathlib.Path, model: trained.Trained, images: np.ndarray) -> dict[str, Any]:
    command = [sys.executable, "-m", "repgls_jax.exports.reload", str(folder)]
    return compare.compare(command, _outputs(model, images), images)


# A further form is a line here and a module beside this one.
FORMATS: dict[str, Format] = {
    "native": Format(
        "everything, as safetensors and JSON: for this project's own commands",
        lambda model: "",
        _write_native,
        _compare_native,
    ),
    "huggingface": Format(
        "the encoder, for transformers in PyTorch",
        _why_not_huggingface,
        _write_huggingface,
        _by_loader(_features, (compare.FILMS,)),
        ("torch", "transformers", "numpy", "safetensors"),
    ),
    "stablehlo": Format(
        "the whole model as one program, for JAX without this project",
        lambda model: "",
        _write_stablehlo,
        _by_loader(_outputs, (1, compare.FILMS)),  # any number of films
        ("jax", "jaxlib", "numpy"),
    ),
    "onnx": Format(
        "the whole model for onnxruntime",
        lambda model: onnx.why_not(),
        _write_onnx,
        _compare_onnx,
        ("jax2onnx", "onnxruntime", "numpy"),
        onnx.interpreter,
    ),
}


def run(
    run_folder: pathlib.Path,
    output: pathlib.Path,
    formats: Sequence[str],
    journal: Journal,
    which: checkpoint.Which = "latest",
) -> dict[str, Any]:
    """Exports a checkpoint.

    Args:
      run_folder: of a LU-ViT run, or of its checkpoints alone; then thresholds, counts and metrics are not known.
      output: folder to make; must not exist.
      formats: keys of :data:`FORMATS`.
      journal: told of progress.
      which: of the run's checkpoints.

    Returns:
      The manifest.

    Raises:
      FileExistsError: ``output`` exists.
      ValueError: a format is unknown, or cannot be made of this model or on this machine; names all such.
      FileNotFoundError: no run or checkpoint is there.
      repgls_jax.exports.compare.DiffersError: an export is not the checkpoint. Nothing is left then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"formats {', '.join(unknown) or 'is empty'}; expected some of {', '.join(FORMATS)}")
    if output.exists():
        raise FileExistsError(f"{output} exists; name another folder, or delete it")
    # The CPU computes in float32 throughout, which other devices may not.
    model = trained.load(run_folder, sharding.make_mesh(devices=jax.devices("cpu")[:1]), which)
    reasons = {name: FORMATS[name].why_not(model) for name in formats}
    if any(reasons.values()):
        raise ValueError("; ".join(f"{name} cannot be made: {why}" for name, why in reasons.items() if why))
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = _make(partial, run_folder, model, formats, journal)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _make(
    folder: pathlib.Path, run_folder: pathlib.Path, model: trained.Trained, formats: Sequence[str], journal: Journal
) -> dict[str, Any]:
    facts: Facts = gather(run_folder, model, journal)
    parts = {
        "model": model.description,
        "vocabulary": dataclasses.asdict(model.vocabulary) | {"findings": list(model.vocabulary.findings)},
        "input": dict(model.input),
        "preprocessing": dict(model.preprocessing),
        "source": dict(model.source) | {"thresholds": facts.chosen_on},
        "thresholds": facts.thresholds,
        "reference": facts.reference,
    }
    images = compare.films(compare.FILMS, model.size, model.input["dtype"])
    compared = {}
    for name in dict.fromkeys(formats):
        (folder / name).mkdir()
        FORMATS[name].write(folder / name, model, parts)
        compared[name] = FORMATS[name].compare(folder / name, model, images)
        compared[name]["versions"] = compare.versions(FORMATS[name].versions, FORMATS[name].python())
        shutil.rmtree(folder / name / "__pycache__", ignore_errors=True)
        worst = max(compared[name]["max_difference"].values())
        journal.say(f"  {name}: read again in a process of its own, largest difference {worst:.1e}")
    policy = policies.POLICIES.get((model.source.get("policy") or {}).get("name", ""))
    told = {
        **parts,
        "data": facts.data,
        "policy_note": policy.note if policy else "",
        "metrics": facts.metrics,
        "metrics_note": facts.metrics_note,
        "formats": {name: FORMATS[name].holds for name in compared},
    }
    (folder / CARD).write_text(card.write(told))
    manifest = {
        "format": f"{native.FORMAT}-export",
        "version": native.VERSION,
        "package": __version__,
        "source": parts["source"],
        "compared": compared,
        "files": files.listed(folder),
    }
    files.write_json(folder / MANIFEST, manifest)
    return json.loads((folder / MANIFEST).read_text())


def _loader(folder: pathlib.Path, name: str) -> None:
    text = importlib.resources.files("repgls_jax.exports").joinpath(f"templates/{name}.py").read_text()
    (folder / "load.py").write_text(text)
