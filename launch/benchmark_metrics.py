"""Times the patient bootstrap of the metrics beside scikit-learn doing the same.

    python launch/benchmark_metrics.py

Predictions are drawn at random: findings from rare to common, masked labels, several films of a patient, some scores
equal. scikit-learn is called once per replicate and finding, with the patients' counts as sample weights; it is timed
on a few replicates, by turns with ours, and scaled to all. Wall time is what a user waits; processor time is told
beside it, for it is what can be compared on a machine that others use. Needs scikit-learn (extra dev).
"""

import os
import time

import numpy as np
from absl import app, flags
from sklearn import metrics as sklearn_metrics

from repgls_jax.results import bootstrap

_IMAGES = flags.DEFINE_integer("images", 25_000, "films", lower_bound=1)
_FINDINGS = flags.DEFINE_integer("findings", 14, "findings", lower_bound=1)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "bootstraps", lower_bound=1)
_TIMED = flags.DEFINE_integer("timed", 3, "replicates that scikit-learn is timed on", lower_bound=1)

THEIRS = {
    "auroc": sklearn_metrics.roc_auc_score,
    "auprc": sklearn_metrics.average_precision_score,
    "brier": sklearn_metrics.brier_score_loss,
}
SETS = (("auroc",), tuple(THEIRS), (*THEIRS, "ece"))


def example(images: int, findings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Probabilities, labels and mask [n, c], the patient of each film [n], and the number of patients."""
    rng = np.random.default_rng(0)
    patients = max(1, images * 2 // 5)
    shape = (images, findings)
    labels = (rng.random(shape) < np.geomspace(0.01, 0.5, findings)).astype(np.int8)
    scores = np.round(1 / (1 + np.exp(2 - 1.5 * labels - rng.normal(size=shape))), 5).astype(np.float32)
    return scores, labels, rng.random(shape) < 0.95, np.sort(rng.integers(0, patients, images)), patients


def scikit_learn(names: tuple[str, ...], replicates: range, case: tuple) -> dict[str, np.ndarray]:
    """The replicates one by one: name -> [count, c]."""
    scores, labels, mask, patient, patients = case
    made: dict[str, list[list[float]]] = {name: [] for name in names}
    for i in replicates:
        weight = bootstrap.draw(0, i, patients)[patient]
        for name in names:
            each = []
            for j in range(scores.shape[1]):
                kept = mask[:, j] & (weight > 0)
                each.append(THEIRS[name](labels[kept, j], scores[kept, j], sample_weight=weight[kept]))
            made[name].append(each)
    return {name: np.array(values) for name, values in made.items()}


def main(argv: list[str]) -> None:
    """Prints one line a set of metrics."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    case = example(_IMAGES.value, _FINDINGS.value)
    scores, labels, mask, patient, patients = case
    count, timed = _REPLICATES.value, _TIMED.value
    print(
        f"{count:,} patient bootstraps x {scores.shape[1]} findings x {len(scores):,} films of {patients:,} patients, "
        f"{len(os.sched_getaffinity(0))} cores, 1-minute load {os.getloadavg()[0]:.1f}"
    )
    for names in SETS:
        began, cpu = time.perf_counter(), time.process_time()
        ours = bootstrap.replicates(0, scores, labels, mask, patient, patients=patients, count=count, names=names)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        said = f"{' '.join(names)}: {wall:.2f} s ({cpu:.2f} s of processor time)"
        if set(names) <= set(THEIRS):
            began, spent = time.perf_counter(), time.process_time()
            theirs = scikit_learn(names, range(timed), case)
            scale = count / timed
            theirs_wall, spent = (time.perf_counter() - began) * scale, (time.process_time() - spent) * scale
            gap = max(float(np.abs(ours[name][:timed] - theirs[name]).max()) for name in names)
            said += (
                f"; scikit-learn {theirs_wall:.0f} s ({spent:.0f} s), from {timed} replicates: "
                f"{theirs_wall / wall:.0f} times ours, {spent / cpu:.0f} times in processor time; "
                f"largest difference {gap:.1e}"
            )
        print(said, flush=True)


if __name__ == "__main__":
    app.run(main)
