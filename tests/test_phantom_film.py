"""Films, masks, patients and splits of the phantom."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repgls_jax import phantom
from repgls_jax.findings import CHEXPERT
from repgls_jax.phantom import lesions, population

CONFIG = phantom.PhantomConfig(seed=3)


@functools.cache
def _states(count: int) -> list[population.State]:
    return [population.state_of(CONFIG, *population.patient_of(i)) for i in range(count)]


def _example(k: int, contrast: float) -> int:
    """A study where finding k (of the thirteen) is present and at least this visible."""
    return next(i for i, s in enumerate(_states(3000)) if s.truth[k] and s.contrast[k] > contrast)


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_study_depends_on_seed_and_index_alone():
    forward = {i: phantom.generate(CONFIG, i) for i in range(8)}
    for i in (5, 2, 7, 0):
        assert _same(phantom.generate(CONFIG, i), forward[i])
    assert not np.array_equal(phantom.generate(dataclasses.replace(CONFIG, seed=4), 0)["image"], forward[0]["image"])
    assert all(_same(r, forward[i]) for i, r in enumerate(phantom.studies(CONFIG, 8)))


def test_record_has_the_shared_fields():
    record = phantom.generate(CONFIG, 0)
    c = len(CHEXPERT)
    assert record["image"].dtype == np.uint8 and record["image"].shape == (64, 64)
    assert record["masks"].dtype == np.uint16 and record["masks"].shape == (64, 64)
    for key, dtype in (("labels", "i1"), ("observed", "?"), ("truth", "i1"), ("contrast", "f4"), ("belief", "f4")):
        assert record[key].dtype == np.dtype(dtype) and record[key].shape == (c,), key
    assert (record["labels"] == -2).all() and not record["observed"].any() and record["has_report"] is True
    assert record["split"] == phantom.split_of(CONFIG, record["patient_id"])
    assert record["view"] in ("PA", "AP")


@settings(max_examples=12, deadline=None)
@given(
    size=st.sampled_from([64, 65, 96, 128, 200, 256]),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 10**7),
    difficulty=st.floats(0.2, 5.0),
    hedging=st.floats(0.0, 4.0),
    imbalance=st.floats(0.0, 2.0),
    evidence=st.sampled_from(["image", "independent"]),
    mention_only=st.booleans(),
    typos=st.floats(0.0, 0.2),
)
def test_any_config_gives_a_whole_study(index: int, size: int, **fields: object):
    config = phantom.PhantomConfig(image_size=size, **fields)
    record = phantom.generate(config, index)
    assert record["image"].shape == (size, size) and record["image"].std() > 20
    belief = record["belief"]
    assert np.isfinite(belief).all() and (belief >= 0).all() and (belief <= 1).all()
    assert bool(record["report"]) != bool(record["findings"] or record["impression"])
    present = [bool(((record["masks"] >> k) & 1).any()) for k in range(len(CHEXPERT))]
    assert present[0] is False  # "No Finding" has no place
    assert present[1:] == record["truth"][1:].astype(bool).tolist()
    assert record["truth"][0] == (not record["truth"][1:13].any())


def test_truth_and_report_do_not_depend_on_the_size_of_the_film():
    small, large = (phantom.generate(dataclasses.replace(CONFIG, image_size=s), 17) for s in (64, 160))
    for key in ("truth", "contrast", "belief", "report", "findings", "impression"):
        assert np.array_equal(small[key], large[key]), key
    # Shrunk to the same grid, the films show the same chest.
    coarse = [r["image"].reshape(32, n, 32, n).mean((1, 3)) for r, n in ((small, 2), (large, 5))]
    assert np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1] > 0.985


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", population.NAMES)
def test_a_film_changes_where_the_mask_lies(name: str, size: int):
    k = population.NAMES.index(name)
    index = _example(k, 0.5)
    config = dataclasses.replace(CONFIG, image_size=size)
    ill, masks, _, _ = phantom.render(config, index)
    well, other_masks, _, _ = phantom.render(config, index, without=[name])
    change = np.abs(ill.astype(float) - well)
    mask = ((masks >> (k + 1)) & 1).astype(bool)
    assert change[mask].max() >= 8, "a clear finding is hardly drawn"
    assert (change**2)[mask].sum() > 0.9 * (change**2).sum()
    assert mask.mean() < 0.25
    assert np.array_equal(masks & ~np.uint16(1 << (k + 1)), other_masks)


@pytest.mark.parametrize("name", population.NAMES)
def test_more_contrast_is_more_change(name: str):
    from repgls_jax.phantom import anatomy

    chest = anatomy.Chest(anatomy.body_of(CONFIG, 1, 0), 96)
    place = lesions.place_of(name, _states(10)[0].places[0])
    faint, clear = (np.abs(lesions.paint(name, chest, place, c)[0]).sum() for c in (0.2, 0.8))
    assert 0 < faint < 0.7 * clear


def test_side_of_a_lesion_is_the_side_in_its_place():
    for name in ("Pneumothorax", "Lung Lesion", "Pleural Other", "Fracture", "Consolidation"):
        k = population.NAMES.index(name)
        index = _example(k, 0.1)
        masks, state = phantom.render(CONFIG, index)[1:3]
        place = lesions.place_of(name, state.places[k])
        columns = np.nonzero((masks >> (k + 1)) & 1)[1]
        # The patient's right is on the left of the film.
        assert (columns.mean() < 32) == (place.side < 0), name


def test_patients_stay_in_one_split_and_splits_have_their_shares():
    patients = [population.patient_of(i) for i in range(6000)]
    visits = {}
    for patient, visit in patients:
        visits.setdefault(patient, []).append(visit)
    assert all(v == list(range(len(v))) for v in visits.values())
    assert {len(v) for v in visits.values()} == {1, 2, 3}
    shares = [population.split_of(CONFIG, p) for p in visits]
    for name, want in zip(("train", "valid", "test"), CONFIG.split, strict=True):
        assert abs(shares.count(name) / len(shares) - want) < 0.03
    seen: dict[str, str] = {}
    for record in phantom.studies(CONFIG, 40):
        assert seen.setdefault(record["patient_id"], record["split"]) == record["split"]
    assert len(seen) == 24


def test_bad_input_is_refused_with_its_value():
    with pytest.raises(ValueError, match=r"image_size is 63.*evidence is 'none'"):
        phantom.PhantomConfig(image_size=63, evidence="none")
    with pytest.raises(ValueError, match="split"):
        phantom.PhantomConfig(split=(0.5, 0.1, 0.1))
    with pytest.raises(ValueError, match="-1"):
        phantom.generate(CONFIG, -1)
    with pytest.raises(ValueError, match="'x1'"):
        phantom.split_of(CONFIG, "x1")
