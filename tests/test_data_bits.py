"""Grey of 8 or of 16 bits, by choice: from the file to the batch, to the look at the data, and to the network."""

import dataclasses
import inspect
import itertools
import json
import pathlib
import pickle
import types

import hostile_layouts as layouts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_data_look
from dicom_files import film as dicom_film
from PIL import Image
from test_data_build import Stub

from repgls_jax import data, evaluate, trained
from repgls_jax.data import images, look, look_page, look_pixels, mix, pipeline, shards
from repgls_jax.data.augment import Augment
from repgls_jax.findings import CHEXPERT
from repgls_jax.models import luvit, vit
from repgls_jax.train.journal import Journal

pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")
SIDE = 40
WHOLE = {"WindowCenter": 2048, "WindowWidth": 4096}  # of 12 bits, from black to white
STRONG = Augment(translate=0.5, rotate=180, scale=0.5, brightness=0.5, contrast=1, flip=0.5)
STILL = Augment(translate=0, rotate=0, scale=0, brightness=0, contrast=0)


def pixels(n):
    """Film ``n``: odd ones of 12 bits, even ones of 16."""
    made = np.random.default_rng(n).integers(0, 2**12 if n % 2 else 2**16, (SIDE, SIDE)).astype(np.uint16)
    made[0, :2] = 0, (2**12 if n % 2 else 2**16) - 1
    return made


def make(root, name):
    """The layout of a data set: films of 12 bits are DICOM files, those of 16 PNG files."""
    root.mkdir()
    films = []
    for n in range(15):
        file = root / "film.png"
        Image.fromarray(pixels(n)).save(file)
        films.append(layouts.Film(n, dicom_film(pixels(n), 12, **WHOLE) if n % 2 else file.read_bytes()))
        file.unlink()
    layouts.LAYOUTS[name](root, films)
    return {film.image_id: film.n for film in films}


class Deep(Stub):
    """The stub's films, with 16 bits."""

    bits = 16

    def made(self, split, i):
        record = super().made(split, i)
        return record | {"image": record["image"].astype(np.uint16) * 257}


def test_every_data_set_of_files_has_the_choice():
    assert {*layouts.LAYOUTS} == {*data.DATASETS} - {"phantom"}
    for name in layouts.LAYOUTS:
        assert inspect.signature(data.dataset(name)).parameters["bits"].default == 8
    with pytest.raises(ValueError, match="the phantom has no field bits"):
        data.dataset("phantom")(bits=16)


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_deep_films_survive_to_the_batch(tmp_path, name):
    of = make(tmp_path / "in", name)
    options = {"source": tmp_path / "in", "image_size": SIDE} | layouts.OPTIONS.get(name, {})
    manifest = data.build(name, tmp_path / "out", workers=1, bits=16, **options)
    assert manifest["source"]["bits"] == 16 and not manifest["quarantine"]["count"]
    seen = set()
    for split in manifest["counts"]:
        folder = tmp_path / "out" / "shards"
        ids = shards.examples(folder, split)["image_id"]
        train = pipeline.train_batches(folder, split, {}, batch_size=2, seed=0, augment=Augment(), threads=1)
        for image in next(train)["image"]:
            assert image.dtype == np.uint16 and len(np.unique(image)) > 256
        for batch in pipeline.eval_batches(folder, split, {}, batch_size=2, threads=1):
            assert batch["image"].dtype == np.uint16
            for index, image in zip(batch["index"][batch["valid"]], batch["image"][..., 0], strict=False):
                n = of[ids[index]]
                depth = 2**12 if n % 2 else 2**16
                np.testing.assert_allclose(image, pixels(n) * (65535 / (depth - 1)), rtol=0, atol=1)
                assert len(np.unique(image)) > 256
                seen.add(n)
    assert seen == set(range(15))


def test_nothing_is_said_of_8_bits_and_yet_the_two_are_never_confused(tmp_path):
    make(tmp_path / "in", "table")
    options = {"source": tmp_path / "in", "image_size": SIDE, "workers": 1}
    shallow = data.build("table", tmp_path / "8", **options)
    assert "bits" not in json.dumps(shallow)
    assert shards.Images(tmp_path / "8" / "shards", "train").dtype == np.uint8
    assert data.build("table", tmp_path / "8", bits=8, **options) == shallow
    data.build("table", tmp_path / "16", bits=16, **options)
    for there, wanted in (("8", 16), ("16", 8)):
        with pytest.raises(ValueError, match=r"holds another build \(source\.bits differ\)"):
            data.build("table", tmp_path / there, bits=wanted, **options)


def test_an_interrupted_build_goes_on_with_its_own_bits_alone(tmp_path):
    def interrupted(job, todo, tick):
        job(todo[0], tick)
        raise KeyboardInterrupt

    make(tmp_path / "in", "table")
    options = {"source": tmp_path / "in", "image_size": SIDE, "workers": 1}
    for begun, wanted in ((8, 16), (16, 8)):
        with pytest.raises(KeyboardInterrupt):
            data.build("table", tmp_path / f"{begun}", engine=interrupted, bits=begun, **options)
        with pytest.raises(ValueError, match=r"holds another build \(source\.bits differ\)"):
            data.build("table", tmp_path / f"{begun}", bits=wanted, **options)
        data.build("table", tmp_path / f"{begun}", bits=begun, **options)
    for wrong in (12, 16.0, True, "16"):
        with pytest.raises(ValueError, match=f"bits is {wrong!r}; expected 8 or 16"):
            data.build("table", tmp_path / "12", bits=wrong, **options)


def test_shards_of_16_bits_are_read_alike_in_every_way(tmp_path):
    data.build_source(Deep({"train": 9, "valid": 1, "test": 1}), tmp_path / "out")
    folder = tmp_path / "out" / "shards"
    opened = shards.Images(folder, "train")
    assert pickle.loads(pickle.dumps(opened)).dtype == opened.dtype == np.uint16  # noqa: S301
    whole, records = opened.read(range(9)), shards.Records(folder, "train")
    for i, image in enumerate(whole):
        np.testing.assert_array_equal(image, records[i]["image"])
        np.testing.assert_array_equal(image[..., 0], Stub({}).made("train", i)["image"].astype(int) * 257)


def test_sets_of_8_and_16_bits_are_not_mixed(tmp_path):
    for kind, name in ((Stub, "8"), (Deep, "16")):
        data.build_source(kind({"train": 4, "valid": 1, "test": 1}), tmp_path / name)
    opened = {name: shards.Images(tmp_path / name / "shards", "train") for name in ("8", "16")}
    with pytest.raises(ValueError, match="images of uint16 and uint8; build them with the same bits"):
        mix.Joined([opened["8"], opened["16"]])
    joined = mix.Joined([opened["16"], opened["16"]])
    np.testing.assert_array_equal(joined.read([5, 0]), opened["16"].read([1, 0]))


def test_8_bits_of_16_are_the_nearest_level():
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(images.eight_bits(deep), np.rint(deep / 257))
    assert images.eight_bits(deep).dtype == np.uint8
    shallow = np.arange(256, dtype=np.uint8)
    assert images.eight_bits(shallow) is shallow


@pytest.mark.parametrize("augment", [Augment(), STRONG, dataclasses.replace(STILL, brightness=1, contrast=1)])
def test_augmentation_of_16_bits_is_that_of_8_scaled(augment):
    rng = np.random.default_rng(0)
    shallow, draws = rng.integers(0, 256, (64, 33, 29, 1), np.uint8), rng.uniform(-1, 1, (64, 7))
    deep = augment(shallow.astype(np.uint16) * 257, draws)
    assert deep.dtype == np.uint16 and len(np.unique(deep)) > 5_000
    np.testing.assert_allclose(deep / 257, augment(shallow, draws), rtol=0, atol=0.51)


def test_no_augmentation_leaves_16_bits_alone():
    deep = np.random.default_rng(0).integers(0, 2**16, (4, 16, 23, 1)).astype(np.uint16)
    deep[0], deep[1] = 65535, 0
    np.testing.assert_array_equal(STILL(deep, np.random.default_rng(1).uniform(-1, 1, (4, 7))), deep)


def test_a_look_sees_the_same_whatever_the_bits(tmp_path):
    class DeepFilms(test_data_look.Stub):
        bits = 16

        def record(self, split, i):
            made = super().record(split, i)
            return made | {"image": made["image"].astype(np.uint16) * 257}

    found = {}
    for kind, bits in ((test_data_look.Stub, 8), (DeepFilms, 16)):
        data.build_source(kind(), tmp_path / "same")
        found[bits] = look.look(tmp_path / "same"), look_pixels.measure(tmp_path / "same" / "shards", "train", [4, 0])
        look_page.write(tmp_path / f"page{bits}", found[bits][0])
        (tmp_path / "same").rename(tmp_path / f"{bits}")
    for field in (f.name for f in dataclasses.fields(look_pixels.Pixels) if f.name != "digest"):
        np.testing.assert_array_equal(getattr(found[8][1], field), getattr(found[16][1], field), err_msg=field)
    pages = [
        [(tmp_path / f"page{bits}" / f"look.{kind}").read_bytes() for bits in (8, 16)] for kind in ("json", "html")
    ]
    assert all(shallow == deep for shallow, deep in pages)


@pytest.fixture(scope="module")
def net():
    model = luvit.LUViT(3, vit.Architecture(16, 1, 2, 32, patch=8))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1), jnp.uint16))["params"]


def test_a_network_says_nearly_the_same_of_a_film_in_8_and_16_bits(net):
    model, params = net
    rng = np.random.default_rng(0)
    films = [Image.fromarray(rng.random((50, 40), np.float32) ** (i + 1)) for i in range(6)]
    said = {}
    for bits in (8, 16):
        batch = np.stack([images.square(film, 32, bits) for film in films])[..., None]
        said[bits] = np.asarray(model.apply({"params": params}, batch)["logits"])
    assert not np.array_equal(said[8], said[16])
    assert np.abs(said[8] - said[16]).max() < 0.02 * np.ptp(said[8], axis=0).min()


@pytest.mark.parametrize(("dtype", "half"), [(np.uint8, 127.5), (np.uint16, 32767.5)])
def test_the_contract_says_what_the_network_does(dtype, half):
    contract = luvit.input_contract(dtype, 2)
    assert (contract["offset"], contract["scale"], contract["dtype"]) == (half, half, np.dtype(dtype).name)
    grey = jnp.array([[0, 2 * half], [half + 0.5, 1]], dtype)[None, ..., None]
    np.testing.assert_allclose(np.ravel(luvit.normalize(grey)), [-1, 1, 0.5 / half, 1 / half - 1], rtol=1e-5)


def test_pixels_of_another_type_are_refused(net):
    model, params = net
    with pytest.raises(ValueError, match="images are int32; expected uint8 or uint16"):
        model.apply({"params": params}, jnp.zeros((1, 32, 32, 1), jnp.int32))


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        (
            luvit.input_contract(np.uint8, 12),
            "dtype uint8, not uint16; offset 127.5, not 32767.5; scale 127.5, not 32767.5",
        ),
        (luvit.input_contract(np.uint16, 16), "size 16, not 12"),
        (
            luvit.input_contract(np.uint16, 12) | {"photometric": "MONOCHROME1"},
            "photometric MONOCHROME1, not MONOCHROME2",
        ),
        (None, ""),
    ],
)
def test_evaluation_refuses_a_checkpoint_made_for_other_images(tmp_path, monkeypatch, contract, said):
    """The checkpoint itself is not needed: it is refused for what is stored with it."""
    data.build_source(Deep({"train": 4, "valid": 2, "test": 2}), tmp_path / "data" / "set")
    run = tmp_path / "run"
    run.mkdir()
    (run / evaluate.RECORD).write_text(json.dumps({"config": {}, "stages": {"data": "data"}}))
    fields = {"source": {}, "params": {}, "where": "the run"}
    stored = types.SimpleNamespace(vocabulary=CHEXPERT, input=contract or luvit.input_contract(np.uint16, 12), **fields)
    monkeypatch.setattr(trained, "load", lambda folder, mesh, which: stored)
    settings = {"batch_size": 2, "replicates": 0}
    with pytest.raises(ValueError if contract else AttributeError) as error:
        evaluate.run(run, pathlib.Path(tmp_path), "test", settings, Journal(stream=None))
    if contract:
        assert f"takes images with {said} as the data has; build the data as it was" in str(error.value)


def test_the_order_of_batches_does_not_depend_on_the_bits(tmp_path):
    taken = []
    for kind, name in ((Stub, "8"), (Deep, "16")):
        data.build_source(kind({"train": 9, "valid": 1, "test": 1}), tmp_path / name)
        batches = pipeline.train_batches(tmp_path / name / "shards", "train", {}, batch_size=4, seed=1)
        taken.append(list(itertools.islice(batches, 3)))
    for shallow, deep in zip(*taken, strict=True):
        np.testing.assert_array_equal(shallow["index"], deep["index"])
        np.testing.assert_array_equal(shallow["image"].astype(int) * 257, deep["image"])
