"""Guided refinement of a run's rates, from the run's folder and a table of verified labels to a side-car of rates.

The run's encoder stays as it is; its read-out goes on training while the rates of every category of cue, "not
mentioned" among them, are refined (:mod:`repgls_jax.train.refine`). Verified studies are such of the build as are not
trained on.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import methods, sidecars, trained
from repgls_jax.data import shards
from repgls_jax.data.build import SHARDS
from repgls_jax.evidence import labels as given_labels
from repgls_jax.policies import PolicyConfig
from repgls_jax.train import labels as labels_lib
from repgls_jax.train import refine
from repgls_jax.train.journal import Journal

LEAST = 20  # verified studies
LABELLER = "refined"


def run(
    folder: pathlib.Path,
    verified: pathlib.Path,
    output: pathlib.Path,
    config: refine.RefineConfig,
    most: int,
    seed: int,
    journal: Journal,
) -> dict[str, Any]:
    """Refines the rates that a run was trained under, and writes ``output/rates.parquet`` and ``output/refined.json``.

    Args:
      folder: of a LU-ViT run on data with reports, beside the stages that it was made from.
      verified: CSV with study_id and a column of 1, 0 or blank for each finding.
      output: folder to write to.
      config: of the refinement.
      most: training films that are used, drawn at random where there are more; their tokens are held in memory.
      seed: of that and of the batches.
      journal: told of progress.

    Returns:
      What refined.json holds: ``groups`` (names), ``delta`` [g, c] added to atanh(r), ``seen`` [g, c] entries,
      ``verified`` (studies used), ``left_out`` (studies of the table that are trained on, or not in the build),
      ``loss`` on verified labels at the start and at the end.

    Raises:
      FileNotFoundError: the run, a stage or the table is not there.
      ValueError: the data has no reports, or fewer than :data:`LEAST` verified studies can be used.
    """
    found = trained.load(folder)
    data, evidence, made, ids = _said(folder, found.vocabulary, seed)
    encode = trained.encoder(found)
    checks, truth, known, left_out = _verified(verified, data, found.vocabulary)
    journal.say(f"{len(truth):,} films of verified studies; {left_out:,} studies of {verified} left out")
    cue = sidecars.as_array(evidence, "cue", ids, found.vocabulary, "")
    group, names = refine.groups_of(cue, ~np.isnan(made["p"]))
    rows = np.arange(len(ids))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    journal.say(f"encoding {len(rows):,} of {len(ids):,} training films")
    y, mask = labels_lib.noisy_reference(made)
    told = [jnp.asarray(x[rows]) for x in (y.astype(np.float32), made["rate"], mask, group)]
    some = refine.Train(jnp.asarray(encode(shards.images(data, "train", rows.tolist()))), *told)
    few = refine.Verified(jnp.asarray(encode(checks)), jnp.asarray(truth, jnp.float32), jnp.asarray(known))
    head = {name: value for name, value in found.params.items() if name != "encoder"}

    def apply(params: Any, tokens: Any) -> jax.Array:
        out: Any = found.model.apply({"params": params}, jnp.asarray(tokens, jnp.float32))
        return out["logits"]

    got = refine.refine(apply, head, some, few, len(names), config, jax.random.key(seed))
    moved = np.asarray(refine.shifted(jnp.asarray(made["rate"]), jnp.asarray(group), got.refinement, config.bound))
    # A study's films share its report, and so its rates; unlike the RGN's, findings not mentioned have one as well.
    studies, first = np.unique(np.array(ids), return_index=True)
    output.mkdir(parents=True, exist_ok=True)
    origin = {"labeller": LABELLER, "version": folder.name, "evidence_hash": _record(folder)["stages"]["evidence"]}
    everything = np.ones(moved[first].shape, bool)
    path = output / "rates.parquet"
    sidecars.write_rates(path, moved[first], everything, studies.tolist(), found.vocabulary, **origin)
    result = {
        "groups": list(names),
        "findings": list(found.vocabulary.findings),
        "delta": np.asarray(got.delta).round(4).tolist(),
        "seen": np.asarray(got.seen).astype(int).tolist(),
        "verified": len(truth),
        "left_out": left_out,
        "loss": [float(got.verified_loss[0]), float(got.verified_loss[-1])],
    }
    (output / "refined.json").write_text(json.dumps(result, indent=1))
    return result


def _record(folder: pathlib.Path) -> dict[str, Any]:
    """What the run says of itself."""
    record: dict[str, Any] = json.loads((folder / trained.RECORD).read_text())
    return record


def _said(
    folder: pathlib.Path, vocabulary: findings_lib.Vocabulary, seed: int
) -> tuple[pathlib.Path, pa.Table, labels_lib.Columns, list[str]]:
    """The run's shards, its evidence, what training films' reports say with the rates it used, and their studies."""
    record, root = _record(folder), folder.resolve().parent
    stages = record["stages"]
    if "evidence" not in stages:
        raise ValueError(f"{folder} was trained without reports; there are no rates to refine")
    evidence = sidecars.read(root / stages["evidence"] / "evidence.parquet", sidecars.EVIDENCE, vocabulary)
    rates = None
    if "rgn" in stages:
        rates = sidecars.read(root / stages["rgn"] / "rates.parquet", sidecars.RATES, vocabulary)
    settings = methods.settings(record["config"]["policy"])
    policy = PolicyConfig("rgn" if rates is not None else "expert", rho=settings.rho, r_blank=settings.r_blank)
    data = root / stages["data"] / "set" / SHARDS
    examples = shards.examples(data, "train")
    ids = list(examples["study_id"])
    made = labels_lib.columns(examples, evidence, vocabulary)
    return data, evidence, labels_lib.with_rates(made, ids, rates, vocabulary, policy, seed), ids


def _verified(
    table: pathlib.Path, data: pathlib.Path, vocabulary: findings_lib.Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Films of verified studies outside of the training split, their labels and mask [m, c], and studies left out."""
    studies, known, values, _ = given_labels.read(table)
    at = {study: i for i, study in enumerate(studies)}
    columns = {vocabulary.index(name): k for k, name in enumerate(known) if name in vocabulary.findings}
    if not columns:
        raise ValueError(f"{table} verifies {', '.join(known)}; expected findings of {', '.join(vocabulary.findings)}")
    films, labels, used = [], [], set()
    for split in ("valid", "test"):
        ids = list(shards.examples(data, split)["study_id"])
        rows = [i for i, study in enumerate(ids) if study in at]
        if rows:
            films.append(shards.images(data, split, rows))
            labels.append(values[[at[ids[i]] for i in rows]])
            used |= {ids[i] for i in rows}
    if len(used) < LEAST:
        raise ValueError(
            f"{table} holds {len(studies):,} studies, {len(used)} of them in the build's validation or test split; "
            f"expected at least {LEAST} that are not trained on"
        )
    told = np.concatenate(labels)
    truth = np.full((len(told), len(vocabulary)), -1, np.int8)
    for column, k in columns.items():
        truth[:, column] = told[:, k]
    return np.concatenate(films), np.maximum(truth, 0), truth >= 0, len(studies) - len(used)
