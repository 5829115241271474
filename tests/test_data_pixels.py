"""The files of pixels: NumPy's format, damage found by name, checksums once a process, memory, and open files."""

import concurrent.futures
import errno
import json
import os
import pickle
import resource
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_build import Stub

from repgls_jax import data
from repgls_jax.data import builder, pixels, shards

N = 23


class Deep(Stub):
    bits = 16

    def made(self, split, i):
        record = super().made(split, i)
        return record | {"image": record["image"].astype(np.uint16) * 257}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_EXAMPLES", 8)
        out = tmp_path_factory.mktemp("built") / "out"
        data.build_source(Stub({"train": N, "valid": 3, "test": 2}), out)
    return out / "shards"


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "shards")


def files(folder):
    return sorted(folder.glob("*train.pixels-*"))


@pytest.mark.parametrize("kind", [Stub, Deep])
def test_numpy_reads_and_maps_what_is_stored(tmp_path, kind):
    data.build_source(kind({"train": 9, "valid": 1, "test": 1}), tmp_path / "out")
    [file] = files(tmp_path / "out" / "shards")
    wanted = np.stack([kind({}).made("train", i)["image"][..., None] for i in range(9)])
    for mode in (None, "r"):
        found = np.load(file, mmap_mode=mode, allow_pickle=False)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(shards.images(tmp_path / "out" / "shards", "train", range(9)), wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 10**5), st.sampled_from([np.uint8, np.uint16]))
def test_any_header_says_to_numpy_what_it_should(tmp_path_factory, n, side, dtype):
    made = pixels.header((n, side, side, 1), np.dtype(dtype))
    assert len(made) == pixels.HEADER
    path = tmp_path_factory.mktemp("header") / "header"
    path.write_bytes(made)
    with path.open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, found = np.lib.format.read_array_header_1_0(file)
        assert (shape, fortran, found, file.tell()) == ((n, side, side, 1), False, dtype, pixels.HEADER)


def test_files_that_changed_places_are_told_apart(copy):
    first, second = files(copy)[1:]  # of equal size
    first.rename(copy / "swap")
    second.rename(first)
    (copy / "swap").rename(second)
    images, records = shards.Images(copy, "train"), shards.Records(copy, "train")
    assert images.read(range(7)).shape[0] == 7  # of the file that was left alone
    for read in (lambda: images.read([0, 7, 1]), lambda: records[7]):
        with pytest.raises(shards.DamagedShardError, match=rf"{first.name} is damaged at record 0 \(its checksum"):
            read()
    labels = shards.Records(copy, "train", ["labels"])  # are not in those files
    np.testing.assert_array_equal(labels[7]["labels"], Stub({}).made("train", 7)["labels"])


def test_each_image_is_checked_the_first_time_that_a_process_reads_it(built, monkeypatch):
    checked, checksum = [], pixels.checksum
    monkeypatch.setattr(pixels, "checksum", lambda image: checked.append(1) or checksum(image))
    images = shards.Images(built, "train")
    for indices, new in (([3, 4], 2), ([4, 3, 3], 0), ([5, 4], 1), (range(N), N - 3), (range(N), 0)):
        checked.clear()
        images.read(indices)
        assert len(checked) == new
    pickle.loads(pickle.dumps(images)).read([3])  # noqa: S301 - dumped just now
    assert len(checked) == 1
    shards.Records(built, "train")[3]
    assert len(checked) == 2


def test_damage_is_found_again_by_the_next_read(copy):
    content = bytearray(files(copy)[0].read_bytes())
    content[pixels.HEADER + 144 * 2] ^= 4
    files(copy)[0].write_bytes(content)
    images = shards.Images(copy, "train")
    for indices in ([1, 2], [2], [2, 1]):
        with pytest.raises(shards.DamagedShardError, match="damaged at record 2"):
            images.read(indices)
    images.read([1, 3])


def test_what_happens_to_an_open_file_ends_in_an_error(copy, monkeypatch):
    images = shards.Images(copy, "train")
    images.read([0])
    [first, *_] = files(copy)
    os.truncate(first, pixels.HEADER + 144 * 3 + 5)
    images.read([2])
    with pytest.raises(shards.DamagedShardError, match=rf"{first.name} is damaged at record 3 \(the file ends here"):
        images.read([3])
    monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(shards.DamagedShardError, match=rf"{first.name} is damaged at record 2 \(.*Input/output error"):
        images.read([2])


def test_a_file_system_may_return_less_than_was_asked(built, monkeypatch):
    whole, preadv = shards.images(built, "train", range(N)), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, out, at: preadv(file, [memoryview(out[0]).cast("B")[:50]], at))
    np.testing.assert_array_equal(shards.images(built, "train", range(N)), whole)


@pytest.mark.parametrize("index", [-1, N])
def test_an_index_out_of_range_is_refused(built, index):
    with pytest.raises(IndexError, match=f"example {index} of {N}"):
        shards.Images(built, "train").read([0, index])


def test_many_threads_read_the_same_images(built):
    whole, images = shards.images(built, "train", range(N)), shards.Images(built, "train")
    orders = [np.random.default_rng(k).integers(0, N, 64) for k in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, read in zip(orders, pool.map(images.read, orders), strict=True):
            np.testing.assert_array_equal(read, whole[order])


def test_the_metadata_must_agree_with_the_files(copy):
    path = copy / "metadata.json"
    said = json.loads(path.read_text())
    for image, error, match in (
        ({"shape": [12, 13, 1], "dtype": "uint8"}, shards.DamagedShardError, r"1136 bytes instead of the 1220 written"),
        ({"shape": [12, 6, 1], "dtype": "uint16"}, shards.DamagedShardError, "has not the header of images uint16"),
        ({"shape": [12, 12, 1], "dtype": "float32"}, ValueError, "images of float32; expected uint8 or uint16"),
        (None, ValueError, "written by an older version.*build it again"),
    ):
        path.write_text(json.dumps(said | {"image": image}))
        with pytest.raises(error, match=match):
            shards.Images(copy, "train").read([0])


def test_a_build_of_the_format_before_is_refused(tmp_path):
    data.build_source(Stub({"train": 2, "valid": 1, "test": 1}), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    for refused in (data.read_manifest, lambda out: data.build_source(Stub({"train": 2, "valid": 1, "test": 1}), out)):
        with pytest.raises(ValueError, match=r"not of format 3; build the data set again"):
            refused(tmp_path / "out")
    data.build_source(Stub({"train": 2, "valid": 1, "test": 1}), tmp_path / "out", overwrite=True)
    assert data.read_manifest(tmp_path / "out")["format"] == 3


@pytest.mark.parametrize("image", [np.zeros((12, 13), np.uint8), np.zeros((12, 12), np.uint16)])
def test_an_image_that_is_not_as_the_source_says_is_not_stored(tmp_path, image):
    class Wrong(Stub):
        def made(self, split, i):
            return super().made(split, i) | {"image": image}

    with pytest.raises(ValueError, match=r"the source made an image .*expected uint8 \(12, 12, 1\)"):
        data.build_source(Wrong({"train": 2, "valid": 1, "test": 1}), tmp_path / "out")


def test_no_file_is_held_in_memory(tmp_path):
    side, n = 512, 64
    with pixels.Writer(tmp_path / "p.npy", (side, side, 1), np.dtype(np.uint8)) as writer:
        for i in range(n):
            writer.write(np.full((side, side, 1), i, np.uint8))
    out = np.empty((side, side, 1), np.uint8)

    def cost():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        reader = pixels.Reader(tmp_path / "p.npy", (n, side, side, 1), np.dtype(np.uint8))
        for i in range(n):
            reader.read(i, out)
            assert (out == i).all()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    peaks, grown = zip(*(cost() for _ in range(3)), strict=True)  # threads of other tests may allocate during one
    assert min(peaks) < 2 * side * side and min(grown) < 8 * 1024


def test_room_is_made_for_as_many_files_as_there_are(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        pixels.make_room(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, hard)
        pixels.make_room(1400)
        assert (
            resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1400
            and resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
