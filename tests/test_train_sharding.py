"""Where every parameter lives under every preset, what belongs to it, and who loads which part of a batch."""

import dataclasses
import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from repgls_jax.models import luvit, rgn, tokens, vit
from repgls_jax.train import sharding
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.state import TrainState, create

FULL = vit.Architecture(
    64, 2, 4, 128, patch=8, class_token=True, registers=2, position="learned", gated=True, layer_scale=0.1
)
ARCHITECTURES = {name: dataclasses.replace(size, depth=2) for name, size in vit.SIZES.items()} | {"full": FULL}


def shapes_of(architecture: vit.Architecture, scan: bool = False):
    model = luvit.build("", 14, architecture=architecture, scan=scan)
    side = 4 * architecture.patch
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 1), jnp.uint8))["params"]


def rgn_shapes(monotone: bool = True):
    model = rgn.build(14, evidence=True, features=4, monotone=monotone)
    zeros = jnp.zeros((1, 14), jnp.int32)
    words = jnp.zeros((1, 9, tokens.SUBWORDS), jnp.uint16)
    batch = dict.fromkeys(("state", "cue", "section", "mention", "side"), zeros)
    batch |= {"words": words, "features": jnp.zeros((1, 9, 4)), "span": jnp.zeros((1, 14, 2), jnp.int32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)["params"]


def flat(tree) -> dict:
    return {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def specs(shapes, preset: str, **sizes: int) -> dict[str, tuple]:
    mesh = sharding.make_mesh(preset, **sizes)
    return {path: tuple(s.spec) for path, s in flat(sharding.shard_state(shapes, mesh, preset)).items()}


# Width 128, 4 heads of 32, MLP 256, on eight devices; "" is whole. An entry for every preset.
GOLDEN = {
    "encoder/block_1/attention/query/kernel": {
        "fsdp": ("fsdp", None, None),
        "tp": (None, "model", None),
        "fsdp_tp": ("fsdp", "model", None),
        "hybrid": ("fsdp", None, None),
    },
    "encoder/block_1/attention/value/bias": {"tp": ("model", None), "fsdp_tp": ("model", None)},
    "encoder/block_1/attention/out/kernel": {
        "fsdp": (None, None, "fsdp"),
        "tp": ("model", None, None),
        "fsdp_tp": ("model", None, "fsdp"),
        "hybrid": (None, None, "fsdp"),
    },
    "encoder/block_1/attention/out/bias": {},
    "encoder/block_1/mlp/up/kernel": {
        "fsdp": (None, "fsdp"),
        "tp": (None, "model"),
        "fsdp_tp": ("fsdp", "model"),
        "hybrid": (None, "fsdp"),
    },
    "encoder/block_1/mlp/up/bias": {"tp": ("model",), "fsdp_tp": ("model",)},
    "encoder/block_1/mlp/down/kernel": {
        "fsdp": ("fsdp", None),
        "tp": ("model", None),
        "fsdp_tp": ("model", "fsdp"),
        "hybrid": ("fsdp", None),
    },
    "encoder/block_1/mlp_norm/scale": {},
    "encoder/stem/conv_3/kernel": {},
    "encoder/position": {  # [1, 16, 128]
        "fsdp": (None, None, "fsdp"),
        "fsdp_tp": (None, None, "fsdp"),
        "hybrid": (None, None, "fsdp"),
    },
    "read/key/kernel": {
        "fsdp": ("fsdp", None, None),
        "tp": (None, "model", None),
        "fsdp_tp": ("fsdp", "model", None),
        "hybrid": ("fsdp", None, None),
    },
    "presence/kernel": {},  # 14 x 128: small
}


@pytest.mark.parametrize("preset", sharding.PRESETS)
def test_golden_specs(preset):
    assert set(sharding.PRESETS) == {"dp"}.union(*GOLDEN.values())
    shapes = shapes_of(vit.SIZES["demo"])
    slices = {"slices": 2} if preset == "hybrid" else {}
    got = specs(shapes, preset, **slices)
    assert {path: got[path] for path in GOLDEN} == {path: by.get(preset, ()) for path, by in GOLDEN.items()}
    # The scanned blocks are the same with an axis in front, which nothing splits.
    scanned = specs(shapes_of(vit.SIZES["demo"], scan=True), preset, **slices)
    for path, spec in got.items():
        again = scanned[path.replace("block_1", "blocks").replace("block_0", "blocks")]
        assert again == ((None, *spec) if "block_" in path and spec else spec), path


@pytest.mark.parametrize("name", [*ARCHITECTURES, "rgn"])
def test_every_parameter_has_exactly_one_rule(name):
    shapes = rgn_shapes if name == "rgn" else functools.partial(shapes_of, ARCHITECTURES[name])
    trees = [shapes(False), shapes(True)]
    for path in {path for tree in trees for path in flat(tree)}:
        assert len(sharding.matching(path)) == 1, path


def test_no_rule_is_idle():
    paths = {*flat(shapes_of(FULL)), *flat(shapes_of(vit.SIZES["tiny"])), *flat(rgn_shapes()), *flat(rgn_shapes(False))}
    assert {pattern for path in paths for pattern in sharding.matching(path)} == set(sharding.RULES)


def test_a_parameter_without_a_rule_is_refused_where_rules_are_needed():
    shapes = {"novel": {"weight": jax.ShapeDtypeStruct((64, 64), jnp.float32)}}
    assert specs(shapes, "fsdp") == {"novel/weight": ("fsdp", None)}
    with pytest.raises(ValueError, match=r"no sharding rule knows the parameter 'novel/weight'; add it to RULES"):
        specs(shapes, "tp")


def test_heads_that_do_not_divide_stay_whole_and_the_table_says_so():
    shapes = shapes_of(dataclasses.replace(vit.SIZES["Ti"], depth=1))  # 3 heads
    got = specs(shapes, "fsdp_tp", model_parallel=4)
    read = {path: spec for path, spec in got.items() if path.startswith("read/")}
    assert read and all("model" not in spec for spec in read.values())
    assert got["read/query/kernel"] == ("fsdp", None, None)
    assert got["mlp/up/kernel"] == ("fsdp", "model")
    mesh = sharding.make_mesh("fsdp_tp", model_parallel=4)
    lines = sharding.table(shapes, sharding.shard_state(shapes, mesh, "fsdp_tp")).splitlines()
    noted = {line.split()[0] for line in lines if "3 does not divide over model=4" in line}
    headed = re.compile(r".*/((query|key|value)/(kernel|bias)|out/kernel)")
    assert noted == {path for path in got if headed.fullmatch(path)}


def test_table_counts_the_bytes_of_a_device():
    shapes = shapes_of(vit.SIZES["tiny"])
    mesh = sharding.make_mesh("fsdp_tp")
    placed = sharding.shard_state(shapes, mesh, "fsdp_tp")
    put = jax.device_put(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), placed)
    held = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(put))
    assert sharding.table(shapes, placed).splitlines()[-1].split() == ["total", f"{held:,}"]


SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.1, "clip": 1.0}
CHAINS = {
    "adamw by layer": optimizer(ml_collections.ConfigDict(SETTINGS | {"layer_decay": 0.5, "freeze": ()}), 5),
    "masked": optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "accumulated": optax.MultiSteps(optax.sgd(1e-3, momentum=0.9), 2).gradient_transformation(),
}


@pytest.mark.parametrize("tx", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("scan", [False, True])
def test_moments_and_average_live_with_their_parameter(tx, scan):
    model = luvit.build("", 5, architecture=FULL, scan=scan)
    film = jnp.zeros((1, 16, 16, 1), jnp.uint8)
    shapes = jax.eval_shape(lambda: create(model.init(jax.random.key(0), film)["params"], tx, 0, ema=0.9))
    mesh = sharding.make_mesh("fsdp_tp")
    placed = sharding.shard_state(shapes, mesh, "fsdp_tp")
    assert placed.ema == placed.params
    whole = NamedSharding(mesh, P())
    expected = optax.tree_map_params(
        tx,
        lambda leaf, s: leaf if isinstance(leaf, optax.MaskedNode) else s,
        shapes.opt_state,
        placed.params,
        transform_non_params=lambda _: whole,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    assert jax.tree.leaves(placed.opt_state) == jax.tree.leaves(expected)
    assert sum(s != whole for s in jax.tree.leaves(expected)) > 10


def test_moments_under_frozen_parameters():
    """optax.tree_map_params cannot look into a partition by name, so paths are compared."""
    tx = optimizer(ml_collections.ConfigDict(SETTINGS | {"layer_decay": 0.5, "freeze": ("encoder",)}), 5)
    shapes = jax.eval_shape(lambda p: create(p, tx, 0), shapes_of(FULL))
    placed = sharding.shard_state(shapes, sharding.make_mesh("fsdp_tp"), "fsdp_tp")
    moved = {path: s for path, s in flat(placed.params).items() if not path.startswith("encoder/")}
    moments = {path.partition("/mu/")[2]: s for path, s in flat(placed.opt_state).items() if "/mu/" in path}
    assert moments == moved and len(moved) > 10


def test_what_only_looks_like_a_parameter_is_whole():
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}}
    moments = {"a": {"kernel": jax.ShapeDtypeStruct((64,), jnp.float32)}}
    mesh = sharding.make_mesh("fsdp")
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32), shapes, moments)
    placed = sharding.shard_state(state, mesh, "fsdp")
    assert placed.params["a"]["kernel"].spec == P("fsdp", None)
    assert placed.opt_state["a"]["kernel"].spec == P()


@given(
    shape=st.lists(st.integers(1, 300), min_size=0, max_size=4).map(tuple),
    preset=st.sampled_from(list(sharding.PRESETS)),
    path=st.sampled_from(["encoder/blocks/mlp/norm/scale", "queries", "x/embedding/bias", "nothing"]),
)
def test_any_shape_has_a_sharding_that_divides(shape, preset, path):
    mesh = sharding.make_mesh(preset, slices=2 if preset == "hybrid" else 0)
    spec = sharding.PRESETS[preset].rule(path, shape, mesh)
    parts = NamedSharding(mesh, spec).shard_shape(shape)  # raises where an axis does not divide
    assert "blocks" not in path or not shape or parts[0] == shape[0]


@pytest.mark.parametrize(
    ("preset", "given", "shape"),
    [
        ("dp", {}, (8, 1, 1)),
        ("fsdp", {}, (1, 8, 1)),
        ("tp", {}, (4, 1, 2)),
        ("tp", {"model_parallel": 8}, (1, 1, 8)),
        ("fsdp_tp", {"model_parallel": 4}, (1, 2, 4)),
        ("hybrid", {}, (1, 8, 1)),
        ("hybrid", {"slices": 4}, (4, 2, 1)),
    ],
)
def test_mesh_of_every_preset(preset, given, shape):
    mesh = sharding.make_mesh(preset, **given)
    assert mesh.axis_names == sharding.AXES and mesh.devices.shape == shape
    assert sharding.make_mesh(preset, jax.devices()[:1]).size == 1
    assert sharding.batch_parts(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("preset", "given", "message"),
    [
        ("pp", {}, "'pp' is unknown.*fsdp_tp"),
        ("dp", {"model_parallel": 2}, r"does not split layers over 2 devices; \['tp', 'fsdp_tp'\] do"),
        ("tp", {"model_parallel": 3}, "model_parallel 3 does not divide 8 devices"),
        ("hybrid", {"slices": 5}, "slices 5 does not divide 8 devices"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(preset, given, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(preset, **given)


def pod(count: int, per_slice: int) -> list:
    """Devices that say which slice they are of, dealt out of order."""
    made = [SimpleNamespace(id=i, slice_index=i // per_slice, platform="cpu", device_kind="cpu") for i in range(count)]
    return made[::-1]


@pytest.mark.parametrize(("sizes", "axis"), [((4, 4, 1), 0), ((1, 8, 2), 1), ((8, 1, 2), 0)])
def test_slow_links_are_crossed_by_one_axis_of_the_batch(sizes, axis):
    grid = sharding._arranged(pod(16, 4), sizes, 4)
    slices = np.vectorize(lambda d: d.slice_index)(grid)
    assert grid.shape == sizes
    outer = np.moveaxis(slices, axis, 0).reshape(4, -1)  # each quarter of that axis is one slice
    assert [set(row) for row in outer.tolist()] == [{0}, {1}, {2}, {3}]


def test_slices_are_those_of_the_devices_and_hold_whole_layers():
    assert sharding._slices(pod(16, 4), 0) == sharding._slices(pod(16, 4), 4) == 4
    silent = [SimpleNamespace(process_index=i // 2, platform="gpu") for i in range(8)]
    assert sharding._slices(silent, 0) == 4 and sharding._slices(silent, 2) == 2
    assert sharding._slices([SimpleNamespace(process_index=i, platform="tpu") for i in range(8)], 0) == 1
    with pytest.raises(ValueError, match="slices 2: the devices are of 4 slices"):
        sharding._slices(pod(16, 4), 2)
    with pytest.raises(ValueError, match=r"'model': 8.*across 4 slices; lower model_parallel"):
        sharding._arranged(pod(16, 4), (2, 1, 8), 4)


@given(parts=st.integers(1, 6), model=st.integers(1, 4), local=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_processes_load_every_part_once_or_together(parts, model, local, seed):
    """Devices dealt in order to processes: the loads are equal, cover the batch, and agree within a part."""
    if parts * model % local:
        return
    owners = np.arange(parts * model).reshape(parts, model) // local
    if local % model and model % local:
        return  # refused, below
    owners = np.random.default_rng(seed).permutation(owners)
    found = {p: sharding.part_of(owners, p) for p in np.unique(owners).tolist()}
    (count,) = {count for _, count in found.values()}
    assert {index for index, _ in found.values()} == set(range(count)) and parts % count == 0
    for row in owners:
        assert len({found[p] for p in row.tolist()}) == 1  # who shares a part loads the same


def test_uneven_loads_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\], \[1, 2\].*overlap or are uneven; choose a model_parallel"):
        sharding.part_of(np.array([[0, 0, 0], [0, 1, 1], [1, 1, 1]]), 0)


def test_batches_are_split_over_the_parts_and_whole_within():
    mesh = sharding.make_mesh("tp", model_parallel=4)
    assert sharding.host_part(mesh) == (0, 1)
    values = np.arange(12).reshape(6, 2)
    placed = sharding.put_batch({"x": values}, mesh)["x"]
    assert placed.sharding == sharding.batch_sharding(mesh)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(placed, values)
    with pytest.raises(ValueError, match="a batch of 5 does not divide over 2 devices"):
        sharding.put_batch({"x": np.zeros(5)}, mesh)
    assert [sharding.round_up(n, 8) for n in (1, 8, 9)] == [8, 8, 16]


def test_activations_follow_the_batch():
    mesh = sharding.make_mesh("fsdp_tp")
    hold = sharding.constrain(mesh)
    placed = jax.jit(hold)(jnp.zeros((8, 3, 2)))
    assert placed.sharding.shard_shape(placed.shape) == (8 // math.prod(mesh.devices.shape[:2]), 3, 2)
    one = jnp.zeros((1, 3, 2))
    assert jax.jit(hold)(one).shape == one.shape  # the film that initialises
    assert sharding.constrain(sharding.make_mesh("dp", jax.devices()[:1]))(one) is one
