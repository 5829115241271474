"""Several data sets as one: vocabularies, order by weight, resuming."""

import collections
import itertools

import numpy as np
import pytest
from test_data_build import Stub

from repgls_jax import data, findings
from repgls_jax.data import mix, pipeline, shards
from repgls_jax.data.augment import Augment

SIZES = (11, 17, 5)


class Nih(Stub):
    vocabulary = findings.NIH


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folders = []
    for k, (size, kind) in enumerate(zip(SIZES, (Stub, Nih, Stub), strict=True)):
        out = tmp_path_factory.mktemp("mixed") / "out"
        data.build_source(kind({"train": size, "valid": 3, "test": 2}, seed=k), out)
        folders.append(out / "shards")
    return folders


@pytest.fixture(scope="module")
def columns(built):
    parts = []
    for folder in built:
        examples = shards.examples(folder, "train")
        some = {name: examples[name] for name in ("labels", "observed", "age")}
        parts.append(mix.align(some, shards.vocabulary(folder), findings.UNION))
    return mix.concatenate(parts)


def take(built, n, columns=None, **options):
    options = {"batch_size": 4, "seed": 5, "augment": Augment(), "weights": (1, 2, 1)} | options
    return list(itertools.islice(pipeline.train_batches(built, "train", columns or {}, **options), n))


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert set(x) == set(y)
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_findings_keep_their_labels_under_another_vocabulary(built):
    for folder in built[:2]:
        examples, own = shards.examples(folder, "train"), shards.vocabulary(folder)
        aligned = mix.align({name: examples[name] for name in ("labels", "observed")}, own, findings.UNION)
        for k, finding in enumerate(findings.UNION.findings):
            if finding in own.findings:
                at = own.index(finding)
                np.testing.assert_array_equal(aligned["labels"][:, k], examples["labels"][:, at])
                np.testing.assert_array_equal(aligned["observed"][:, k], examples["observed"][:, at])
            else:
                assert (aligned["labels"][:, k] == findings.NOT_MENTIONED).all()
                assert not aligned["observed"][:, k].any()
        assert aligned["labels"].dtype == np.int8 and aligned["observed"].dtype == bool
        back = mix.align(aligned, findings.UNION, own)
        np.testing.assert_array_equal(back["labels"], examples["labels"])


def test_absent_findings_have_no_certainty():
    p = {"p": np.full((2, len(findings.NIH)), 0.5, np.float32), "rate": np.ones((2, len(findings.NIH)), np.float32)}
    aligned = mix.align(p, findings.NIH, findings.CHEXPERT)
    absent = findings.CHEXPERT.index("No Finding")
    assert np.isnan(aligned["p"][:, absent]).all() and (aligned["rate"][:, absent] == 0).all()
    assert aligned["p"].dtype == np.float32


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": np.zeros((2, 13), np.int8)}, r"'labels' has the shape \(2, 13\); expected \[n, 14\]"),
        ({"colour": np.zeros((2, 14))}, "what it says of an absent finding is not known"),
    ],
)
def test_columns_that_cannot_be_aligned_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        mix.align(columns, findings.NIH, findings.UNION)


def test_columns_of_only_some_data_sets_are_refused():
    with pytest.raises(ValueError, match="only some of the data sets have the columns truth"):
        mix.concatenate([{"p": np.zeros(2), "truth": np.zeros(2)}, {"p": np.zeros(3)}])


def test_the_index_says_which_data_set_and_which_image(built, columns):
    joined = mix.Joined([shards.Images(folder, "train") for folder in built])
    assert len(joined) == sum(SIZES)
    for batch in take(built, 12, columns, augment=None):
        for row, i in enumerate(batch["index"]):
            k, at = joined.part(int(i))
            np.testing.assert_array_equal(batch["image"][row], shards.images(built[k], "train", [at])[0])
            example = shards.examples(built[k], "train")
            assert batch["age"][row] == example["age"][at]
            known = [findings.UNION.index(f) for f in shards.vocabulary(built[k]).findings]
            np.testing.assert_array_equal(batch["labels"][row][known], example["labels"][at])


def test_each_data_set_comes_by_its_weight_and_each_image_once_a_round(built):
    drawn = np.concatenate([batch["index"] for batch in take(built, 100, augment=None)])
    starts = np.cumsum((0, *SIZES))
    for k, share in enumerate((0.25, 0.5, 0.25)):
        of = drawn[(drawn >= starts[k]) & (drawn < starts[k + 1])]
        assert abs(len(of) - 400 * share) <= 1
        for batches in range(1, 101):  # an image comes again when all others have; within a batch in any order
            seen = np.bincount(drawn[: batches * (len(drawn) // 100)], minlength=starts[-1])[starts[k] : starts[k + 1]]
            assert seen.max() - seen.min() <= 1
        assert (of[: SIZES[k]] != of[SIZES[k] : 2 * SIZES[k]]).any()


def test_without_weights_every_image_is_as_likely(built):
    counts = collections.Counter(
        np.concatenate([batch["index"] for batch in take(built, 10 * sum(SIZES), weights=(), batch_size=1)]).tolist()
    )
    assert set(counts) == set(range(sum(SIZES)))
    assert max(counts.values()) - min(counts.values()) <= 2


def test_mixing_resumes_and_splits_over_hosts_bitwise(built, columns):
    whole = take(built, 14, columns)
    for step in (1, 6, 13):
        same(take(built, 14 - step, columns, start_step=step), whole[step:])
    for hosts in (2, 4):
        parts = [take(built, 14, columns, host_index=h, host_count=hosts, threads=h) for h in range(hosts)]
        for step, batch in enumerate(whole):
            for h in range(hosts):
                same([parts[h][step]], [{name: np.split(values, hosts)[h] for name, values in batch.items()}])
    same(take(built, 3, columns, workers=2, start_step=2), whole[2:5])


def test_one_data_set_is_not_changed_by_being_listed(built):
    same(take([built[0]], 5, weights=(3,)), take(built[0], 5, weights=()))


@pytest.mark.parametrize("weights", [(1, 2), (1, 0, 1), (1, -1, 1), (1, float("nan"), 1)])
def test_weights_that_do_not_fit_are_refused_at_once(built, weights):
    with pytest.raises(ValueError, match="expected 3 positive numbers, one a data set"):
        pipeline.train_batches(built, "train", {}, batch_size=4, seed=0, weights=weights)


def test_images_of_several_sizes_are_refused(built, tmp_path):
    class Small(Stub):
        image_size = 8

        def made(self, split, i):
            record = super().made(split, i)
            return record | {"image": record["image"][:8, :8], "masks": record["masks"][:8, :8]}

    data.build_source(Small({"train": 4, "valid": 1, "test": 1}), tmp_path / "out")
    with pytest.raises(ValueError, match=r"images of \[\(8, 8, 1\), \(12, 12, 1\)\]"):
        pipeline.train_batches([built[0], tmp_path / "out" / "shards"], "train", {}, batch_size=4, seed=0)
