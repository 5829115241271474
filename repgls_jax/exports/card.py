"""The model card: what an exported model is, from what it was made, how good it was found to be, and what it is not."""

from collections.abc import Mapping
from typing import Any

from repgls_jax.exports import reference as reference_lib

DISCLAIMER = (
    "**Not a medical device.** For research. Not to be used for diagnosis, for triage, or for any decision about a "
    "patient; nobody has shown that it is safe or useful there."
)


def write(facts: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
      facts: model, vocabulary, input, preprocessing, source, thresholds and reference as in an export; ``data``
        {dataset, counts {split: n}, simulated}; ``policy_note``; ``metrics`` a Markdown table or ""; ``metrics_note``;
        ``formats`` name -> what it holds; ``refused`` name -> why.
    """
    parts = [_head(facts), _use(facts), _data(facts), _metrics(facts), _thresholds(facts), _limits(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(facts: Mapping[str, Any]) -> str:
    model, source = facts["model"], facts["source"]
    stem = "a convolutional stem" if model["stem"] == "conv" else "a patch stem"
    formats = "\n".join(f"| `{name}/` | {what} |" for name, what in facts["formats"].items())
    return (
        f"# LU-ViT, {len(facts['vocabulary']['findings'])} findings on chest radiographs\n\n{DISCLAIMER}\n\n"
        f"A vision transformer ({model['depth']} blocks of width {model['width']}, patches of {model['patch']} pixels, "
        f"{stem}) with one query a finding. For each finding it gives the probability that it is present, and the rate "
        "of generalized label smoothing, in (-1, 1), that a report of the film would be expected to have: how unsure "
        f"a reader would sound. Made by Rep-GLS in JAX, run `{source['name']}`, step {source['step']}.\n\n"
        f"| folder | |\n|---|---|\n{formats}\n\n`manifest.json` tells how each was compared with the checkpoint, and "
        "the hash of every file."
    )


def _use(facts: Mapping[str, Any]) -> str:
    told, fit = facts["input"], facts["preprocessing"].get("fit", "pad")
    made = "filled up with black" if fit == "pad" else "cut to the square in its middle"
    return (
        f"## Input\n\nGrey films, 0 black (MONOCHROME2), {told['size']} x {told['size']} pixels, {told['dtype']}: a "
        f"film is {made}, resized with antialiasing, its aspect ratio kept. The model maps its pixels to "
        "[-1, 1] itself.\n\n"
        "```sh\npython launch/predict.py --model=THIS_FOLDER FILMS --output=predictions.csv\n```"
    )


def _data(facts: Mapping[str, Any]) -> str:
    data = facts["data"]
    counts = ", ".join(f"{n:,} {split}" for split, n in data.get("counts", {}).items()) or "numbers not known here"
    simulated = " The films are simulated: nothing about real films follows." if data.get("simulated") else ""
    policy = facts["source"].get("policy") or {}
    pretrained = facts["source"].get("pretrained")
    began = f" The encoder began as a pre-trained {pretrained['family']}." if pretrained else ""
    return (
        f"## Data and labels\n\nTrained on `{data.get('dataset', 'not known here')}` ({counts}).{simulated}{began}\n\n"
        f"Label policy `{policy.get('name', 'not known here')}`: {facts['policy_note'] or 'not described'}."
    )


def _metrics(facts: Mapping[str, Any]) -> str:
    return f"## Measured\n\n{facts['metrics_note']}\n\n{facts['metrics']}".rstrip()


def _thresholds(facts: Mapping[str, Any]) -> str:
    rules, told = facts["thresholds"], facts["source"]["thresholds"]
    if rules is None:
        return "## Thresholds\n\nNone were chosen: the run's validation films were not at hand."
    header = f"| finding | {' | '.join(rules)} |\n|---|{'---:|' * len(rules)}"
    rows = [
        f"| {finding} | {' | '.join(_number(values[finding]) for values in rules.values())} |"
        for finding in facts["vocabulary"]["findings"]
    ]
    return (
        f"## Thresholds\n\nChosen on the {told['split']} split ({told['images']:,} films, against {told['reference']})."
        " They depend on how common a finding is there: choose others for other films.\n\n" + "\n".join([header, *rows])
    )


def _limits(facts: Mapping[str, Any]) -> str:
    reference = facts["reference"]
    looked = (
        f"`predict` warns of films outside the ranges of {reference['films']:,} training films in "
        f"{', '.join(reference_lib.FEATURES)}: a sanity check that misses much, no detector of other images."
        if reference
        else "No ranges of the training films are stored: `predict` does not warn of odd films."
    )
    return (
        "## Limits\n\n- It knows the findings above and nothing else; a low probability of each is no normal film.\n"
        "- Probabilities are as well calibrated as the table says, on films like those, and worse elsewhere.\n"
        "- Labels come from reports or their wording; what readers do not write down, it has not learned.\n"
        "- Nothing was measured by sex, age, device or hospital unless a table above says so.\n"
        f"- {looked}\n\n{DISCLAIMER}"
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
