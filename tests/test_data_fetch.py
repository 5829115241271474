"""Copies of builds: from a folder and from a bucket, checked, resumed, and made once by several processes."""

import json
import multiprocessing
import pathlib
import shutil

import fsspec
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem

from repgls_jax import data
from repgls_jax.data import fetch, shards


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket") / "set"
    data.build("phantom", folder, count=30, image_size=64)
    return folder


class Bucket(LocalFileSystem):
    """A folder that is reached as gs://, in the place of gcsfs."""

    protocol = ("gcs", "gs")
    root = ""
    opened: list[str] = []  # noqa: RUF012

    def __init__(self, **options):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path).removeprefix("gs://").removeprefix("gcs://")
        return path if path.startswith(cls.root) else f"{cls.root}/{path}".rstrip("/")

    def open(self, path, mode="rb", **options):
        Bucket.opened.append(pathlib.Path(path).name)
        return LocalFileSystem().open(self._strip_protocol(path), mode)


@pytest.fixture
def bucket(built, monkeypatch):
    monkeypatch.setattr(Bucket, "root", str(built.parent))
    monkeypatch.setattr(Bucket, "opened", [])
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield "gs://set"
    backend.fsspec_backend._get_filesystem.cache_clear()
    fsspec.register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)


def same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    for split in ("train", "valid", "test"):
        n = len(shards.Images(theirs / "shards", split))
        np.testing.assert_array_equal(*(shards.images(f / "shards", split, range(n)) for f in (ours, theirs)))
        a, b = (shards.examples(f / "shards", split) for f in (ours, theirs))
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_build_is_copied_from_a_bucket_and_only_once(built, bucket, tmp_path):
    told: list[int] = []
    target = fetch.fetch(bucket, tmp_path / "here", True, told.append)
    same(target, built)
    assert sum(told) == sum(about["bytes"] for about in fetch.describe(str(built))[0]["shards"].values())
    assert (target / "reports.parquet").read_bytes() == (built / "reports.parquet").read_bytes()
    Bucket.opened.clear()
    fetch.fetch(bucket, target, True)
    assert set(Bucket.opened) == {"manifest.json"}


def test_report_text_is_copied_only_when_asked(built, tmp_path):
    fetch.fetch(str(built), tmp_path / "here", False)
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["manifest.json", "shards"]


def test_what_was_copied_before_an_interruption_is_not_copied_again(built, bucket, tmp_path):
    target = fetch.fetch(bucket, tmp_path / "here", False)
    files = sorted(fetch.describe(str(built))[0]["shards"])
    (target / "manifest.json").unlink()
    (target / "shards" / files[0]).unlink()
    damaged = target / "shards" / files[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (target / "shards" / ".left-by-a-kill").write_bytes(b"x")
    Bucket.opened.clear()
    same(fetch.fetch(bucket, target, False), built)
    assert set(Bucket.opened) & set(files) == set(files[:2])
    assert not list((target / "shards").glob(".*"))


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_a_file_that_is_not_what_the_manifest_says_is_refused(built, tmp_path, change):
    copy = shutil.copytree(built, tmp_path / "there")
    name = max(fetch.describe(str(built))[0]["shards"])
    (copy / "shards" / name).write_bytes(change((copy / "shards" / name).read_bytes()))
    with pytest.raises(OSError, match=f"{name} is not the file that its manifest describes"):
        fetch.fetch(str(copy), tmp_path / "here", False)
    assert not (tmp_path / "here" / "manifest.json").exists()


def test_what_cannot_be_copied_is_told(built, tmp_path):
    with pytest.raises(FileNotFoundError):
        fetch.describe(str(tmp_path))
    with pytest.raises(ValueError, match="cannot read ftp://; expected a folder or gs://"):
        fetch.describe("ftp://host/set")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="not of format"):
        fetch.describe(str(tmp_path))
    manifest, _ = fetch.describe(str(built))
    manifest["shards"]["../../outside"] = {"bytes": 1, "sha256": ""}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="not in its folder"):
        fetch.fetch(str(tmp_path), tmp_path / "here", False)
    manifest["shards"] = {"a": {"bytes": 10**18, "sha256": ""}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OSError, match="bytes free and needs"):
        fetch.fetch(str(tmp_path), tmp_path / "here", False)


def _fetch(build, target, counts):
    counts.put(fetch.fetch(build, target, False, counts.put))


def test_several_processes_copy_once(built, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_fetch, args=(str(built), tmp_path / "here", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    told = []
    while not queue.empty():
        told.append(queue.get())
    sizes = [about["bytes"] for about in fetch.describe(str(built))[0]["shards"].values()]
    assert sorted(t for t in told if isinstance(t, int)) == sorted(sizes)
    same(tmp_path / "here", built)
