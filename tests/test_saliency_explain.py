"""Regions of builds, overlays, and the command's work from end to end with an untrained network."""

import base64
import io
import json
import re

import jax
import looking
import numpy as np
import pytest
from PIL import Image
from test_data_nih import BOX, make

from repgls_jax import data, findings
from repgls_jax.data import images, shards
from repgls_jax.data.nih import BOX_SIDE, NihSource
from repgls_jax.saliency import explain, maps, overlays, regions, scores

SIDE = looking.SIDE
FINDINGS = ("Pleural Effusion", "Support Devices", "No Finding")
METHODS = ("grad_cam@0", "rollout")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return looking.phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def network():
    return looking.network()


def test_a_phantoms_masks_come_by_finding(phantom):
    marked = regions.Regions(phantom, "test")
    assert marked.kind == "masks"
    films = marked.films[:7]
    bits = shards.masks(phantom / "shards", "test", films)
    masks = marked.read(films)
    for k in range(14):
        np.testing.assert_array_equal(masks[:, k], bits // 2**k % 2 == 1)
    truth = shards.examples(phantom / "shards", "test")["truth"][films]
    assert not masks[truth == 0].any()


def test_priors_are_means_of_training_masks(phantom):
    found, kinds = regions.priors(phantom)
    marked = regions.Regions(phantom, "train")
    masks = marked.read(marked.films)
    shows = masks.any(axis=(2, 3))
    for k in range(14):
        own = shows[:, k].sum() >= regions.FEWEST
        assert kinds[k] == ("finding" if own else "all")
        wanted = masks[shows[:, k], k].mean(axis=0) if own else masks[shows].mean(axis=0)
        np.testing.assert_allclose(found[k], wanted, atol=1e-6)
    assert set(kinds) == {"finding", "all"}


def test_noise_of_a_film_does_not_depend_on_the_batch():
    key = jax.random.key(3)
    together = regions.noise(key, np.array([5, 9]), 2, (4, 4))
    np.testing.assert_array_equal(regions.noise(key, np.array([9]), 2, (4, 4))[0], together[1])
    assert not np.array_equal(together[0], together[1])


def test_boxes_of_a_build_are_regions(tmp_path):
    data.build_source(NihSource(source=make(tmp_path / "raw"), image_size=SIDE), tmp_path / "set", progress=False)
    marked = regions.Regions(tmp_path / "set", "test")
    assert marked.kind == "boxes"
    assert len(marked.films) == 1
    mask = marked.read(marked.films)[0]
    k = marked.vocabulary.index("Mass")
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [k]
    x, y, width, height = (round(value / BOX_SIDE * SIDE) for value in BOX)
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[y : y + height, x : x + width] = True
    np.testing.assert_array_equal(mask[k], wanted)
    # One box in training is no place where a finding tends to be.
    found, kinds = regions.priors(tmp_path / "set")
    assert set(kinds) == {"centre"}
    assert found[0].argmax() in (SIDE // 2 * (SIDE + 1), (SIDE // 2 - 1) * (SIDE + 1))


def test_an_overlay_leaves_the_film_where_the_map_is_zero():
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    values = np.zeros((40, 40), np.float32)
    values[10, 10:20] = np.linspace(0, 1, 10)
    drawn = overlays.blend(film, values)
    grey = np.repeat(film[..., None], 3, axis=-1)
    np.testing.assert_array_equal(drawn[values == 0], grey[values == 0])
    assert (drawn[10, 19] != grey[10, 19]).any()
    # Two films stay apart beneath the highest value: by the share that is not opaque.
    black, white = (overlays.blend(np.full((1, 1), v, np.uint8), np.ones((1, 1), np.float32)) for v in (0, 255))
    assert (white.astype(int) - black > 0.9 * 255 * (1 - overlays.OPAQUE)).all()


def test_an_outline_is_the_rim_of_a_mask():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    rim = overlays.outline(mask, 1)
    assert rim.sum() == 16
    assert not rim[3:6, 3:6].any()
    assert not overlays.outline(np.zeros((4, 4), bool)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_take_any_film_and_keep_the_map_in_its_place(dtype):
    film = np.full((32, 32), np.iinfo(dtype).max // 2, dtype)
    values = np.zeros((4, 4))
    values[3, 0] = 2.0
    drawn = np.asarray(overlays.picture(film, values, 64)).astype(int)
    colour = np.abs(drawn - drawn[0, 63]).sum(axis=-1)
    assert np.unravel_index(colour.argmax(), colour.shape)[0] >= 48
    assert np.unravel_index(colour.argmax(), colour.shape)[1] < 16
    assert np.asarray(overlays.picture(film, None, 64)).std() == 0
    long = overlays.captioned(overlays.picture(film, values, 64), "A name far too long for so small a film", "n")
    assert long.size[0] == 64


def test_maps_overlays_scores_and_page(phantom, network, tmp_path):
    said = []
    settings = explain.Settings(draw=3, batch_size=4, replicates=50, findings=FINDINGS, methods=METHODS)
    results = explain.run(network, phantom, tmp_path, settings, said.append)
    assert results == json.loads((tmp_path / explain.SCORES).read_text())
    assert set(results["findings"]) == {"Pleural Effusion", "Support Devices"}  # nothing marks its absence
    truth = shards.examples(phantom / "shards", "test")["truth"]
    for name, entry in results["findings"].items():
        assert entry["n"] == truth[:, findings.CHEXPERT.index(name)].sum()
        assert set(entry["rows"]) == set(METHODS) | set(regions.CONTROLS)
        assert all(0 <= entry["rows"][row][metric]["value"] <= 1 for row in entry["rows"] for metric in scores.METRICS)
    assert results["shares_chosen_on"] == "valid"
    kept = np.load(tmp_path / explain.MAPS)
    film = images_of(phantom, kept["example"])
    again = maps.make(network.model, ["rollout"])(network.params, film)
    np.testing.assert_allclose(kept["map_rollout"], again["maps"]["rollout"], atol=1e-6)
    for path in (tmp_path / explain.OVERLAYS).iterdir():
        assert re.fullmatch(r"\d{6}_(pleural-effusion|support-devices|no-finding)_(grad_cam@0|rollout)\.png", path.name)
        assert Image.open(path).size[0] == 384
    page = (tmp_path / explain.PAGE).read_text()
    assert page.count("<table>") == len(scores.METRICS)
    inline = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1))
    assert inline == (tmp_path / explain.SHEET).read_bytes()
    assert Image.open(io.BytesIO(inline)).size[0] > 600
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    everything = page + "".join(said) + (tmp_path / explain.TABLES).read_text()
    for name in ("patient_id", "study_id", "image_id"):
        ids = shards.examples(phantom / "shards", "test")[name]
        assert not any(one in everything for one in ids)


def images_of(build, films):
    return shards.Images(build / "shards", "test").read(films)


def test_a_build_without_regions_has_maps_and_no_scores(network, tmp_path):
    # Boxes are for one test film: without it nothing is marked.
    raw = make(tmp_path / "raw")
    (raw / "BBox_List_2017.csv").unlink()
    data.build_source(NihSource(source=raw, image_size=SIDE, findings="chexpert"), tmp_path / "set", progress=False)
    output = tmp_path / "out"
    output.mkdir()
    said = []
    settings = explain.Settings(draw=2, batch_size=4, findings=("Cardiomegaly",), methods=("attention",))
    assert explain.run(network, tmp_path / "set", output, settings, said.append) is None
    assert not (output / explain.SCORES).exists()
    assert "nothing to score" in (output / explain.PAGE).read_text()


def test_what_does_not_fit_is_refused(phantom, network, tmp_path):
    with pytest.raises(ValueError, match="Flu"):
        explain.run(network, phantom, tmp_path, explain.Settings(findings=("Flu",)), print)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        explain.run(network, tmp_path / "nowhere", tmp_path, explain.Settings(), print)
    assert images.eight_bits(np.zeros(1, np.uint16)).dtype == np.uint8
