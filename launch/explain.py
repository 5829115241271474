"""Shows where a trained LU-ViT looks: maps, overlays, a sheet, scores against lesions, and a page.

    python launch/explain.py --run=runs/luvit-0123456789ab --output=looks
    python launch/explain.py --model=EXPORT --data=BUILD --findings="Edema,Fracture" --methods=grad_cam --output=looks

--model takes a run too, its checkpoints or an export. Without --data the films are those of the run's own build. Scores
need a build that says where findings are: the phantom's lesions, or the boxes of NIH ChestX-ray14.
"""

import json
import pathlib

from absl import app, flags, logging

from repgls_jax import trained
from repgls_jax.saliency import explain, maps

_RUN = flags.DEFINE_string("run", None, "folder of a LU-ViT run")
_MODEL = flags.DEFINE_string("model", None, "folder of a run, of its checkpoints or of an export; with --data")
_DATA = flags.DEFINE_string("data", None, "folder of a build; without it that of the run")
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which films")
_FINDINGS = flags.DEFINE_list("findings", [], "names, with commas; none for all")
_METHODS = flags.DEFINE_list(
    "methods", list(maps.METHODS), f"some of {', '.join(maps.METHODS)}; grad_cam@1 reads the tokens behind one block"
)
_LIMIT = flags.DEFINE_integer("limit", 0, "films to score, drawn at random; 0 for all", lower_bound=0)
_DRAW = flags.DEFINE_integer("draw", 12, "films whose maps and overlays are kept", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 16, "films at a time", lower_bound=1)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "bootstrap replicates; 0 for no intervals", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "of every choice", lower_bound=0)


def _places(run: str | None, model: str | None, data: str | None) -> tuple[str, pathlib.Path]:
    """Where the model and the build are.

    Raises:
      ValueError: the flags do not say.
    """
    if (run is None) == (model is None):
        raise ValueError("name the model by --run=RUN or by --model=PATH, one of them")
    if data is not None:
        return run or model or "", pathlib.Path(data)
    if run is None:
        raise ValueError("--model does not say where films are; add --data=BUILD")
    record = pathlib.Path(run) / trained.RECORD
    if not record.exists():
        raise FileNotFoundError(
            f"{run} holds no {trained.RECORD}; expected the folder of a LU-ViT run, or --data=BUILD"
        )
    return run, pathlib.Path(run).parent / json.loads(record.read_text())["stages"]["data"] / "set"


def main(argv: list[str]) -> None:
    """Explains; faults of the input end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    settings = explain.Settings(
        split=_SPLIT.value,
        findings=tuple(_FINDINGS.value),
        methods=tuple(_METHODS.value),
        limit=_LIMIT.value,
        draw=_DRAW.value,
        batch_size=_BATCH.value,
        replicates=_REPLICATES.value,
        seed=_SEED.value,
    )
    output = pathlib.Path(_OUTPUT.value)
    try:
        model, build = _places(_RUN.value, _MODEL.value, _DATA.value)
        made = trained.load(model)
        output.mkdir(parents=True, exist_ok=True)
        explain.run(made, build, output, settings, print)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    app.run(main)
