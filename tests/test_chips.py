"""The table of chips is whole and plausible, and device_kind strings find their chip."""

import itertools

import pytest

from repgls_jax import chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_device_kinds_find_their_chip(kind, name):
    assert chips.of(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v5 litepod", "NVIDIA L40"])
def test_what_is_not_listed_is_not_guessed(kind):
    assert chips.of(kind) is None


def test_no_kind_means_two_chips():
    kinds = list(itertools.chain.from_iterable(chip.kinds for chip in chips.CHIPS.values()))
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_figures_are_plausible_and_have_a_source(chip):
    assert chip.source and chip.kinds
    # Every one of these does some hundred operations for a byte from memory, and memory is faster than the links, which
    # are faster than the network: a figure in the wrong unit, or counted both ways, falls out.
    assert 100 < chip.flops / chip.hbm_bandwidth < 700
    assert chip.hbm_bandwidth > chip.links * chip.link_bandwidth > chip.network
    assert 8e9 < chip.hbm_bytes < 200e9
    assert (chip.ring > 0) == chip.name.startswith("TPU") == (chip.links > 1) == (chip.network > 0)
    if chip.clock:
        # A few matrix units of 128 x 128, or of 256 x 256 that are four such, do a multiply-add a cell and cycle.
        units = chip.flops / chip.clock / 2 / 128**2
        assert units == pytest.approx(round(units), rel=0.01) and 4 <= round(units) <= 16
