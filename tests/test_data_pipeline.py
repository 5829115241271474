"""Batches: order, resuming, hosts, joins, padding, augmentation."""

import itertools

import numpy as np
import pytest
from PIL import Image
from test_data_build import Stub

from repgls_jax import data
from repgls_jax.data import pipeline, shards
from repgls_jax.data.augment import Augment

N = 21


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    data.build_source(Stub({"train": N, "valid": 3, "test": 2}), out / "out")
    return out / "out" / "shards"


def take(built, n, split="train", columns=None, **options):
    options = {"batch_size": 4, "seed": 5, "augment": Augment(), "threads": 2} | options
    return list(itertools.islice(pipeline.train_batches(built, split, columns or {}, **options), n))


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert set(x) == set(y)
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_batches_have_the_promised_shapes(built):
    truth = shards.examples(built, "train")["truth"]
    (batch,) = take(built, 1, columns={"truth": truth, "weight": np.ones(N, np.float32)})
    assert batch["image"].shape == (4, 12, 12, 1) and batch["image"].dtype == np.uint8
    assert batch["index"].shape == (4,) and batch["index"].dtype == np.int32
    assert batch["truth"].shape == (4, 14) and batch["truth"].dtype == np.int8
    assert batch["weight"].shape == (4,)


def test_columns_and_images_belong_to_the_index(built):
    truth = shards.examples(built, "train")["truth"]
    for batch in take(built, 12, columns={"truth": truth}, augment=None):
        np.testing.assert_array_equal(batch["truth"], truth[batch["index"]])
        np.testing.assert_array_equal(batch["image"], shards.images(built, "train", batch["index"]))


def test_each_epoch_holds_every_example_once_in_another_order(built):
    order = np.concatenate([b["index"] for b in take(built, N, batch_size=2, augment=None)])
    first, second = order[:N], order[N : 2 * N]
    assert sorted(first) == sorted(second) == list(range(N))
    assert (first != second).any()
    assert (order != np.concatenate([b["index"] for b in take(built, N, batch_size=2, seed=6, augment=None)])).any()


def test_resuming_at_any_step_continues_bitwise(built):
    whole = take(built, 14)
    for step in (0, 1, 5, 6, 13):
        same(take(built, 14 - step, start_step=step), whole[step:])
    assert take(built, 1, start_step=10**9)[0]["index"].shape == (4,)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_any_number_of_hosts_sees_the_same_global_batches(built, hosts, start):
    whole = take(built, 5, start_step=start)
    parts = [take(built, 5, host_index=h, host_count=hosts, start_step=start) for h in range(hosts)]
    for step, batch in enumerate(whole):
        for h in range(hosts):
            same([parts[h][step]], [{name: values[h::hosts] for name, values in batch.items()}])


def test_threads_and_workers_do_not_change_the_batches(built):
    whole = take(built, 4)
    same(take(built, 4, threads=0), whole)
    same(take(built, 4, threads=5), whole)
    same(take(built, 4, workers=1), whole)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluation_sees_every_example_once_and_marks_the_padding(built, hosts, split):
    truth = shards.examples(built, split)["truth"]
    n, seen = len(truth), []
    batches = [
        list(pipeline.eval_batches(built, split, {"truth": truth}, batch_size=8, host_index=h, host_count=hosts))
        for h in range(hosts)
    ]
    assert {len(part) for part in batches} == {-(-n // 8)}
    for batch in itertools.chain.from_iterable(batches):
        assert batch["image"].shape == (8 // hosts, 12, 12, 1)
        valid = batch["valid"]
        assert valid.dtype == bool
        np.testing.assert_array_equal(batch["truth"][valid], truth[batch["index"][valid]])
        assert (batch["index"][~valid] == -1).all() and not batch["image"][~valid].any()
        assert not batch["truth"][~valid].any()
        seen += batch["index"][valid].tolist()
    assert sorted(seen) == list(range(n))
    if hosts == 1:
        assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "host_count": 4}, "batch_size 6 is not a positive multiple of the 4 hosts"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"host_index": 2, "host_count": 2}, "host_index is 2 of host_count 2"),
        ({"start_step": -1}, "start_step is -1"),
        ({"columns": {"image": np.zeros(N)}}, "column name 'image' is taken"),
        (
            {"columns": {"rate": np.zeros((N - 1, 14))}},
            r"'rate' has the shape \(20, 14\) but the split has 21 examples",
        ),
        ({"columns": {"rate": np.float32(1)}}, r"'rate' has the shape \(\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(built, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(built, "train", **({"columns": {}, "batch_size": 4, "seed": 0} | options))


def _image(pixels):
    return {"image": pixels[..., None], "index": np.int32(3)}


def test_no_augmentation_leaves_the_image_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    still = Augment(translate=0, rotate=0, scale=0, brightness=0, contrast=0)
    out = still(_image(pixels), np.random.default_rng(1))
    np.testing.assert_array_equal(out["image"][..., 0], pixels)
    flipped = Augment(translate=0, rotate=0, scale=0, brightness=0, contrast=0, flip=1.0)
    out = flipped(_image(pixels), np.random.default_rng(1))
    np.testing.assert_array_equal(out["image"][..., 0], pixels[:, ::-1])
    assert out["index"] == 3


def test_augmentation_does_not_flip_by_default_and_stays_small():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[20:44, 8:20] = 200  # all on one side
    for seed in range(30):
        out = Augment()(_image(pixels), np.random.default_rng(seed))["image"][..., 0].astype(int)
        assert out.dtype == int and out[:, :32].sum() > out[:, 32:].sum()
    assert Augment().flip == 0


def test_rotation_agrees_with_pil():
    pixels = np.random.default_rng(0).integers(0, 256, (33, 33), np.uint8)

    class Fixed:
        def uniform(self, low, high, n):
            return np.array([0, 0, 0, 1, 0, 0, 0], float)  # rotate by the full angle, nothing else

    turned = Augment(rotate=20)(_image(pixels), Fixed())["image"][..., 0]
    oracle = np.asarray(Image.fromarray(pixels).rotate(-20, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(turned.astype(int), oracle.astype(int), atol=1)


def test_augmentation_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"rotate is 400, expected 0 to 180; flip is -1"):
        Augment(rotate=400, flip=-1)
