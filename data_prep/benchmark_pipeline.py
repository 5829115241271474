"""Images a second from shards to a ready batch, for each storage format, beside a PyTorch DataLoader.

  python data_prep/benchmark_pipeline.py --images=4096 --rounds=5 --formats=pixels,raw

Both sides get the same films of the phantom in the same encodings, in random order with two label columns, and take
turns. The pipeline reads the files of pixels that builds are made of ("pixels"), the same files mapped into memory, and
ArrayRecord files with the images in several encodings, as builds once were. "first read" is the pipeline where every
image is new to it, so that its checksum is compared each time, as in the first epoch. The DataLoader (`pip install
torch`) has a dataset with one file an image, which it augments with PIL, and is measured without workers and with one
per core; the better one counts. A last DataLoader is given all it could wish for: the raw pixels in one memory-mapped
array that fits into memory, a whole batch at a time, augmented by the pipeline's own code.

Images are listed over and over, as if there were 100,000: to order many has another price than to order few. Beside
images a second stands processor time, workers' included, which other programs on the machine disturb less. All files
are in memory when they are read, but for the last table, before which the system is asked to forget them.
"""

import functools
import io
import itertools
import os
import pathlib
import resource
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags, logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from repgls_jax import data, findings
from repgls_jax.data import mix, pipeline, shards
from repgls_jax.data.augment import Augment
from repgls_jax.data.images import Bits
from repgls_jax.data.meter import Meter
from repgls_jax.phantom import PhantomConfig, generate

_IMAGES = flags.DEFINE_integer("images", 2048, "images in the data set", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 224, "side in pixels", lower_bound=8)
_BATCH = flags.DEFINE_integer("batch_size", 128, "images in a batch", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "rounds; both sides take turns", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "of each measurement", lower_bound=0.1)
_FORMATS = flags.DEFINE_list("formats", [], "of those below; all by default")

_LISTED = 100_000
_FILMS = 64  # different films; more only take longer to make
_STORED_ALIKE = "group_size:1,uncompressed"


def _pil(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _open_pil(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).ravel()


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


class Format(NamedTuple):
    """How images are stored: the encoding, and the ArrayRecord's options or "" for files of pixels."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]
    options: str
    files: str  # the encoding of the DataLoader's files


FORMATS = {
    "pixels": Format(np.ndarray.tobytes, _bytes, "", "raw"),
    "first read": Format(np.ndarray.tobytes, _bytes, "", "raw"),
    "mapped": Format(np.ndarray.tobytes, _bytes, "", "raw"),
    "raw": Format(np.ndarray.tobytes, _bytes, _STORED_ALIKE, "raw"),
    "raw_zstd": Format(np.ndarray.tobytes, _bytes, "group_size:1", "raw"),
    "zlib": Format(lambda a: zlib.compress(a.tobytes()), lambda b: _bytes(zlib.decompress(b)), _STORED_ALIKE, "zlib"),
    "png": Format(lambda a: _pil(a, "PNG"), _open_pil, _STORED_ALIKE, "png"),
    "jpeg95": Format(lambda a: _pil(a, "JPEG", quality=95), _open_pil, _STORED_ALIKE, "jpeg95"),
}


class Rate(NamedTuple):
    """Images a second, and microseconds of processor time an image."""

    speed: float
    cost: float


class Films:
    """A source of phantom films."""

    vocabulary = findings.CHEXPERT
    simulated = False
    bits: Bits = 8

    def __init__(self, count: int, image_size: int):
        self.count, self.image_size = count, image_size
        self._films = [generate(PhantomConfig(image_size=image_size), i) for i in range(min(count, _FILMS))]

    def splits(self) -> dict[str, int]:
        return {"train": self.count}

    def record(self, split: str, i: int) -> dict[str, Any]:
        record = self._films[i % len(self._films)]
        names = ("image_id", "patient_id", "study_id")
        return record | {name: f"{name}-{i}" for name in names} | {"sex": "", "age": -1, "has_report": False}

    def parameters(self) -> dict[str, Any]:
        return {}


class Listed(shards.Images):
    """Images listed over and over; ``new`` forgets which were checked."""

    def __init__(self, folder: pathlib.Path, new: bool):
        super().__init__(folder, "train")
        self._new = new

    def __len__(self) -> int:
        return _LISTED

    def fill(self, out: np.ndarray, rows: np.ndarray, indices: np.ndarray, meter: Meter) -> None:
        if self._new:
            self._checked[:] = False
        super().fill(out, rows, indices % len(self._checked), meter)


class Mapping(Listed):
    """The same from files that are mapped into memory, unchecked."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, False)
        self._maps = [np.asarray(np.load(path, mmap_mode="r")) for path in pixel_files(folder)]

    def fill(self, out: np.ndarray, rows: np.ndarray, indices: np.ndarray, meter: Meter) -> None:
        indices = indices % len(self._checked)
        of = np.searchsorted(self._split.starts, indices, side="right") - 1
        with meter.measure("read"):
            for row, k, at in zip(rows.tolist(), of.tolist(), (indices - self._split.starts[of]).tolist(), strict=True):
                out[row] = self._maps[k][at]


class Coded(Listed):
    """Images of ArrayRecord files that hold them in an encoding."""

    def __init__(self, folder: pathlib.Path, files: list[pathlib.Path], name: str):
        super().__init__(folder, False)
        self._records = ArrayRecordDataSource([str(file) for file in files], {"max_parallelism": "1"})
        self._decode = FORMATS[name].decode

    def fill(self, out: np.ndarray, rows: np.ndarray, indices: np.ndarray, meter: Meter) -> None:
        flat = out.reshape(len(out), -1)
        with meter.measure("read"):
            for row, i in zip(rows.tolist(), (indices % len(self._checked)).tolist(), strict=True):
                example = tf_example_pb2.Example.FromString(self._records[i])
                flat[row] = self._decode(example.features.feature["image"].bytes_list.value[0])


def pixel_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of pixels of the training split."""
    return sorted(folder.glob("*train.pixels-*"))


def recode(built: pathlib.Path, folder: pathlib.Path, name: str) -> int:
    """Writes ArrayRecord files that hold the images, too; returns their size in bytes, or that of the shards."""
    encode, _, options, _ = FORMATS[name]
    records = sorted(built.glob("*train.array_record-*"))
    if not options:
        return sum(file.stat().st_size for file in (*records, *pixel_files(built)))
    folder.mkdir()
    for file, beside in zip(records, pixel_files(built), strict=True):
        reader, writer = ArrayRecordReader(str(file)), ArrayRecordWriter(str(folder / file.name), options)
        for record, image in zip(reader.read_all(), np.load(beside, mmap_mode="r")[..., 0], strict=True):
            example = tf_example_pb2.Example.FromString(record)
            example.features.feature["image"].bytes_list.value.append(encode(image))
            writer.write(example.SerializeToString())
        reader.close()
        writer.close()
    return sum(file.stat().st_size for file in folder.iterdir())


def stored(folder: pathlib.Path, name: str) -> Listed:
    """The images in a format."""
    if FORMATS[name].options:
        return Coded(folder / "build" / "shards", sorted((folder / name).iterdir()), name)
    built = folder / "build" / "shards"
    return Mapping(built) if name == "mapped" else Listed(built, name == "first read")


def ours(images: mix.Joined, columns: dict[str, np.ndarray], augment: bool, meter: Meter) -> Iterator[Any]:
    """The pipeline's batches."""
    return pipeline.train_batches(
        images,
        "train",
        columns,
        batch_size=_BATCH.value,
        seed=0,
        augment=Augment() if augment else None,
        threads=len(os.sched_getaffinity(0)),
        meter=meter,
    )


class Files:
    """A map-style dataset as they are mostly written: a file an image, changed by PIL."""

    def __init__(self, folder: pathlib.Path, name: str, columns: dict[str, np.ndarray], augment: bool):
        self.folder, self.decode, self.columns = folder, FORMATS[name].decode, columns
        self.augment = Augment() if augment else None
        self.side = _SIZE.value

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        pixels = self.decode((self.folder / f"{i % _IMAGES.value}").read_bytes()).reshape(self.side, self.side)
        if self.augment is not None:
            u = np.random.default_rng((0, i)).uniform(-1, 1, 7)
            grey = np.arange(256, dtype=np.float32)
            grey = (grey - 127.5) * (1 + self.augment.contrast * u[0]) + 127.5 + 255 * self.augment.brightness * u[1]
            inverse = tuple(self.augment.inverse(self.side, self.side, u[None])[0])
            film = Image.fromarray(pixels)
            film = film.transform(film.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
            pixels = np.array(film.point(np.clip(np.rint(grey), 0, 255).astype(int).tolist()))
        else:
            pixels = pixels.copy()  # torch refuses to share memory that cannot be written
        return {"image": pixels[..., None], "index": i} | {name: values[i] for name, values in self.columns.items()}


class Mapped:
    """The fastest dataset that a DataLoader can have here."""

    def __init__(self, file: pathlib.Path, columns: dict[str, np.ndarray], augment: bool):
        self.pixels, self.columns = np.load(file, mmap_mode="r"), columns
        self.augment = Augment() if augment else None

    def __len__(self) -> int:
        return _LISTED

    def __getitems__(self, indices: list[int]) -> dict[str, np.ndarray]:
        images = self.pixels[np.array(indices) % len(self.pixels)]
        if self.augment is not None:
            draws = np.random.default_rng((0, indices[0])).uniform(-1, 1, (len(indices), self.augment.draws))
            images = self.augment(images, draws).copy()  # torch warns of memory that cannot be written
        batch = {"image": images, "index": np.array(indices)}
        return batch | {name: values[indices] for name, values in self.columns.items()}


def theirs(dataset: Any, workers: int) -> Iterator[Any]:
    """A DataLoader's batches, without end."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    torch.set_num_threads(1)  # as in its workers; with more, collating takes longer than with one

    def whole(batch: Any) -> Any:
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    loader = DataLoader(
        dataset,
        batch_size=_BATCH.value,
        sampler=RandomSampler(dataset, replacement=True, num_samples=10**9),
        num_workers=workers,
        collate_fn=whole if isinstance(dataset, Mapped) else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def rate(make: Callable[[], Iterator[Any]]) -> Rate:
    """Images a second once the buffers are full, and processor time over the whole life of the iterator."""
    before, count = _processor_seconds(), 0
    batches = make()
    for batch in itertools.islice(batches, 6):
        count += len(batch["image"])
    began, start = time.perf_counter(), count
    while time.perf_counter() - began < _SECONDS.value:
        count += len(next(batches)["image"])
    elapsed = time.perf_counter() - began
    del batches  # ends a DataLoader's workers, whose time is known then
    return Rate((count - start) / elapsed, 1e6 * (_processor_seconds() - before) / count)


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _write(folder: pathlib.Path, names: list[str]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Writes all that both sides read; returns the columns, and bytes an image by format."""
    data.build_source(Films(_IMAGES.value, _SIZE.value), folder / "build", workers=1)
    built = folder / "build" / "shards"
    examples = shards.examples(built, "train")
    columns = {name: np.resize(examples[name], (_LISTED, len(findings.CHEXPERT))) for name in ("labels", "observed")}
    pixels = shards.images(built, "train", range(_IMAGES.value))
    np.save(folder / "pixels.npy", pixels)
    for name in dict.fromkeys(FORMATS[name].files for name in names):
        (folder / f"{name} files").mkdir()
        for i, image in enumerate(pixels[..., 0]):
            (folder / f"{name} files" / f"{i}").write_bytes(FORMATS[name].encode(image))
    return columns, {name: recode(built, folder / name, name) // _IMAGES.value for name in names}


def _measure(
    folder: pathlib.Path, names: list[str], columns: dict[str, np.ndarray], augment: bool, meters: dict[str, Meter]
) -> dict[tuple[str, str], list[Rate]]:
    """(side, format) -> rates of the rounds; the sides take turns."""
    workers = len(os.sched_getaffinity(0))
    contenders: dict[tuple[str, str], Callable[[], Iterator[Any]]] = {}
    for name in names:
        images = mix.Joined([stored(folder, name)])
        images.read(range(_IMAGES.value))  # and compare the checksums, once
        contenders["ours", name] = functools.partial(ours, images, columns, augment, meters[name])
    for name in dict.fromkeys(FORMATS[name].files for name in names):
        files = Files(folder / f"{name} files", name, columns, augment)
        for count in (0, workers):
            contenders[f"DataLoader {count}", f"{name} files"] = functools.partial(theirs, files, count)
    mapped = Mapped(folder / "pixels.npy", columns, augment)
    for count in (0,) if augment else (0, workers):  # JAX does not live in forked processes
        contenders[f"DataLoader {count}", "memory-mapped"] = functools.partial(theirs, mapped, count)
    rates: dict[tuple[str, str], list[Rate]] = {key: [] for key in contenders}
    for _ in range(_ROUNDS.value):
        for key, make in contenders.items():
            rates[key].append(rate(make))
    return rates


def _cold(folder: pathlib.Path, names: list[str]) -> None:
    """Prints what is read from the disk for a tenth of the images, in random order, where none is in memory."""
    chosen = np.random.default_rng(0).permutation(_IMAGES.value)[: max(1, _IMAGES.value // 10)]
    for name in names:
        images = stored(folder, name)
        for path in folder.rglob("*-of-*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_inblock, time.perf_counter()
        images.read(chosen)
        speed = len(chosen) / (time.perf_counter() - began)
        disk = 512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before) // len(chosen)
        print(f"  {name:20} {disk:9,} B an image, {speed:,.0f} images/s")


def main(argv: list[str]) -> None:
    """Prints a table: median images a second [least, most] of each side, and the ratio."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    logging.set_verbosity(logging.WARNING)
    unknown = [name for name in _FORMATS.value if name not in FORMATS]
    if unknown:
        raise SystemExit(f"benchmark_pipeline: no format {', '.join(unknown)}; expected some of {', '.join(FORMATS)}")
    names = _FORMATS.value or list(FORMATS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        columns, sizes = _write(folder, names)
        for augment in (False, True):
            meters = {name: Meter() for name in names}
            rates = _measure(folder, names, columns, augment, meters)
            print(f"\n{'with' if augment else 'without'} augmentation, {_SIZE.value} px, batches of {_BATCH.value}")
            for (side, name), values in rates.items():
                size = f"{sizes[name]:7,} B" if side == "ours" else ""
                speeds, costs = zip(*values, strict=True)
                spread = f"[{min(speeds):,.0f}, {max(speeds):,.0f}]"
                print(
                    f"  {name:20} {side:13} {statistics.median(speeds):8,.0f} images/s {spread:18} "
                    f"{statistics.median(costs):6,.0f} us processor {size}"
                )
            for name in names:
                _compare(name, f"{FORMATS[name].files} files", rates)
                print(f"    {meters[name].summary(1.0).partition('; ')[2]}")
            _compare(names[0], "memory-mapped", rates)
        print("\nfrom the disk, one image in ten")
        _cold(folder, names)


def _compare(name: str, peer: str, rates: dict[tuple[str, str], list[Rate]]) -> None:
    peers = [key for key in rates if key[1] == peer]
    best = max(peers, key=lambda key: statistics.median(rate.speed for rate in rates[key]))
    pairs = list(zip(rates["ours", name], rates[best], strict=True))
    ratios = [a.speed / b.speed for a, b in pairs]
    cost = statistics.median(b.cost / a.cost for a, b in pairs)
    print(
        f"  {name}: {statistics.median(ratios):.2f} x {best[0]} on {peer} [{min(ratios):.2f}, {max(ratios):.2f}], "
        f"{cost:.2f} x by processor time"
    )


if __name__ == "__main__":
    app.run(main)
