"""Batches: order, resuming, hosts, joins, padding, augmentation."""

import dataclasses
import hashlib
import itertools
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_data_build import Stub

from repgls_jax import data
from repgls_jax.data import pipeline, shards
from repgls_jax.data.augment import Augment
from repgls_jax.data.meter import Meter

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
            same([parts[h][step]], [{name: np.split(values, hosts)[h] for name, values in batch.items()}])


def test_threads_do_not_change_the_batches(built):
    whole = take(built, 4)
    same(take(built, 4, threads=0), whole)
    same(take(built, 4, threads=5), whole)


def hashes(batches):
    """One hash per step over the parts that the hosts have, put together as the global batch."""
    made = []
    for parts in zip(*batches, strict=True):
        digest = hashlib.sha256()
        for name in sorted(parts[0]):
            whole = np.concatenate([part[name] for part in parts])
            digest.update(name.encode() + str(whole.dtype).encode() + whole.tobytes())
        made.append(digest.hexdigest())
    return made


@pytest.fixture(scope="module")
def undisturbed(built):
    truth = shards.examples(built, "train")["truth"]
    return truth, hashes([take(built, 40, columns={"truth": truth})])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([1, 2, 4]), st.integers(0, 4), st.integers(0, 36))
def test_batches_follow_from_seed_and_step_alone(built, undisturbed, hosts, threads, start):
    truth, wanted = undisturbed
    options = {"columns": {"truth": truth}, "host_count": hosts, "threads": threads, "start_step": start}
    assert hashes([take(built, 4, host_index=h, **options) for h in range(hosts)]) == wanted[start : start + 4]


@pytest.mark.parametrize(("hosts", "workers", "start"), [(1, 2, 7), (2, 1, 33)])
def test_worker_processes_make_the_same_batches(built, undisturbed, hosts, workers, start):
    truth, wanted = undisturbed
    options = {"columns": {"truth": truth}, "host_count": hosts, "workers": workers, "start_step": start}
    assert hashes([take(built, 3, host_index=h, **options) for h in range(hosts)]) == wanted[start : start + 3]


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


STILL = Augment(translate=0, rotate=0, scale=0, brightness=0, contrast=0)


def augmented(augment, pixels, draws):
    return augment(pixels[None, ..., None], draws[None])[0, ..., 0]


def test_no_augmentation_leaves_the_image_alone():
    rng = np.random.default_rng(0)
    pixels, draws = rng.integers(0, 256, (16, 23), np.uint8), rng.uniform(-1, 1, 7)
    np.testing.assert_array_equal(augmented(STILL, pixels, draws), pixels)
    flipped = dataclasses.replace(STILL, flip=1.0)
    np.testing.assert_array_equal(augmented(flipped, pixels, draws), pixels[:, ::-1])


def test_augmentation_does_not_flip_by_default_and_stays_small():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[20:44, 8:20] = 200  # all on one side
    for draws in np.random.default_rng(0).uniform(-1, 1, (30, 7)):
        out = augmented(Augment(), pixels, draws).astype(int)
        assert out[:, :32].sum() > out[:, 32:].sum()
    assert Augment().flip == 0


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("height", "width"), [(33, 33), (9, 40), (1, 1)])
def test_augmentation_agrees_with_scipy(seed, height, width):
    rng = np.random.default_rng(seed)
    pixels, draws = rng.integers(0, 256, (height, width), np.uint8), rng.uniform(-1, 1, 7)
    strong = Augment(translate=0.5, rotate=180, scale=0.5, brightness=0.3, contrast=0.5, flip=0.5)
    a, b, c, d, e, f = strong.inverse(width, height, draws[None])[0]
    half = 0.5 * (a + b - 1), 0.5 * (d + e - 1)  # SciPy counts from a pixel's centre
    matrix, offset = [[e, d], [b, a]], (f + half[1], c + half[0])
    grey = ndimage.affine_transform(pixels.astype(float), matrix, offset, order=1, mode="grid-constant")
    slope = 1 + strong.contrast * draws[0]
    oracle = np.clip((grey - 127.5) * slope + 127.5 + 255 * strong.brightness * draws[1], 0, 255)
    # Places and weights are rounded to 1/256 of a pixel, the result to one grey level.
    np.testing.assert_allclose(augmented(strong, pixels, draws), oracle, atol=0.5 + 2 * 255 / 256 * slope)


def test_an_image_is_augmented_alike_in_any_batch():
    rng = np.random.default_rng(0)
    images, draws = rng.integers(0, 256, (7, 31, 29, 1), np.uint8), rng.uniform(-1, 1, (7, 7))
    whole = Augment(flip=0.5)(images, draws)
    assert whole.shape == images.shape and whole.dtype == np.uint8 and (whole != images).any()
    for size in (1, 2):
        for first in range(0, 7, size):
            part = slice(first, first + size)
            np.testing.assert_array_equal(Augment(flip=0.5)(images[part], draws[part]), whole[part])


def test_augmentation_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"rotate is 400, expected 0 to 180; flip is -1"):
        Augment(rotate=400, flip=-1)


KINDS = ("array_record", "pixels")


def damaged(built, tmp_path, kind, change):
    copy = tmp_path / "shards"
    shutil.copytree(built, copy)
    (path,) = copy.glob(f"*-train.{kind}-*")
    change(path)
    return copy, path.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 3000, -1])
def test_a_file_of_another_size_is_refused_by_name(built, tmp_path, kind, size):
    copy, name = damaged(built, tmp_path, kind, lambda path: path.write_bytes(path.read_bytes()[:size]))
    for opened in (shards.Images, shards.Records):
        with pytest.raises(shards.DamagedShardError, match=name):
            opened(copy, "train")
    shards.Images(copy, "valid")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(built, tmp_path, kind):
    copy, name = damaged(built, tmp_path, kind, pathlib.Path.unlink)
    with pytest.raises(FileNotFoundError, match=name):
        shards.Images(copy, "train")


def flip(path, offset, bit):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_end_in_an_error_that_names_the_file_or_change_nothing(built, tmp_path, kind):
    whole, refused = shards.images(built, "train", range(N)), []
    copy, name = damaged(built, tmp_path, kind, lambda path: None)
    path, rng = copy / name, np.random.default_rng(0)
    for _ in range(150):
        offset, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
        flip(path, offset, bit)
        try:
            np.testing.assert_array_equal(shards.images(copy, "train", range(N)), whole)
        except shards.DamagedShardError as error:
            assert name in str(error)
            refused.append((offset, bit))
        flip(path, offset, bit)
    assert len(refused) > 10 and (kind == "array_record" or len(refused) == 150)
    flip(path, *refused[-1])
    for workers in (0, 1):  # and the one who asks for batches is told, though a worker wraps it in an error of its own
        with pytest.raises(
            (shards.DamagedShardError, RuntimeError), match=f"{name} is damaged at record|{name} has not the"
        ):
            take(copy, N, workers=workers)


@pytest.mark.parametrize("record", [b"", b"\xff\xff", b"\x0a\x00"])
def test_a_forged_record_is_refused(built, monkeypatch, record):
    records, images = shards.Records(built, "train"), shards.Images(built, "train")
    monkeypatch.setattr(type(records._split), "record", lambda self, i: record)
    for read in (lambda: records[3], lambda: images.read([3])):
        with pytest.raises(shards.DamagedShardError, match=r"array_record-00000-of-00001 is damaged at record 3"):
            read()


def test_the_meter_tells_where_the_time_goes(built):
    meter = Meter()
    take(built, 3, meter=meter, columns={"weight": np.ones(N)})
    assert all(meter.seconds[stage] > 0 for stage in ("read", "check", "augment", "join"))
    meter.add("wait", 1.0)
    meter.add("transfer", 0.5)
    assert meter.waited() == 1.5
    assert meter.summary(10.0).startswith("input: wait 10.0%, transfer 5.0% of the time; ")
    assert pickle.loads(pickle.dumps(meter)).waited() == 0  # noqa: S301 our own
