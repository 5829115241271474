"""Collectives and memory traffic read from compiled programs whose answers are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from repgls_jax import chips
from repgls_jax.dryrun import collectives, hlo, traffic
from repgls_jax.dryrun.collectives import Collective

MESH = Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
WIDTH = 48  # float32: 192 bytes a row


def compiled(function, spec, out_spec, rows=8):
    """HLO text of ``function`` mapped over the mesh, on an array [rows, 48] split as ``spec`` says."""
    mapped = jax.shard_map(function, mesh=MESH, in_specs=spec, out_specs=out_spec, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32)).compile().as_text()


def found(text):
    return collectives.find(hlo.parse(text), MESH)


def test_a_sum_in_a_loop_counts_each_turn():
    def five_times(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.psum(x, "fsdp")), None), x, None, length=5)[0]

    (one,) = found(compiled(five_times, P("data"), P("data")))
    assert (one.kind, one.axes, one.group, one.count) == ("all-reduce", ("fsdp",), 2, 5)
    assert one.operand == 4 * WIDTH * 4
    assert one.sent == 5 * one.operand  # 2 (n - 1) / n of it, n = 2
    assert one.op_name.endswith("psum")


def test_loops_within_loops_multiply():
    def nested(x):
        def inner(x, _):
            return jnp.sin(jax.lax.psum(x, "model")), None

        return jax.lax.scan(lambda x, _: (jax.lax.scan(inner, x, None, length=4)[0], None), x, None, length=3)[0]

    assert [one.count for one in found(compiled(nested, P("data"), P("data")))] == [12]


BODIES = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), ("fsdp",), 1.0),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, ("data", "fsdp"), tiled=True), ("data", "fsdp"), 3 / 4),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "model", 0, 1, tiled=True), ("model",), 1 / 2),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), ("data",), 1.0),
    "all-reduce": (lambda x: jax.lax.psum(x, ("fsdp", "model")), ("fsdp", "model"), 3 / 2),
}


@pytest.mark.parametrize("kind", BODIES)
def test_kinds_axes_and_bytes(kind):
    body, axes, share = BODIES[kind]
    (one,) = found(compiled(body, P(), P()))
    assert (one.kind, one.axes, one.count) == (kind, axes, 1)
    assert one.operand == 8 * WIDTH * 4
    assert one.sent == pytest.approx(share * one.operand)


# What the TPU compiler writes: a loop without a known number of turns, a gather spread over a chain of fusions, and the
# transfer between slices as a send to the host.
TPU = """HloModule jit_step

%fused_start (param_0: f32[2,48]) -> (f32[2,48], f32[8,48]) {
  %param_0 = f32[2,48]{1,0:T(8,128)} parameter(0)
  %all-gather.1 = f32[8,48]{1,0:T(8,128)} all-gather(%param_0), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %custom-call.1 = (f32[2,48]{1,0}, f32[8,48]{1,0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%fused_done (param_0.1: f32[2,48], param_1.1: f32[8,48]) -> f32[8,48] {
  %param_0.1 = f32[2,48]{1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[8,48]{1,0:T(8,128)} parameter(1)
  %all-gather.2 = f32[8,48]{1,0:T(8,128)} all-gather(%param_0.1), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %custom-call.2 = f32[8,48]{1,0} custom-call(%param_0.1, %param_1.1, %all-gather.2), \
custom_call_target="AsyncCollectiveDone"
}

%body (carried: (s32[], f32[2,48])) -> (s32[], f32[2,48]) {
  %carried = (s32[], f32[2,48]{1,0}) parameter(0)
  %get-tuple-element.1 = s32[] get-tuple-element(%carried), index=0
  %constant.1 = s32[] constant(1)
  %add.1 = s32[] add(%get-tuple-element.1, %constant.1)
  %get-tuple-element.2 = f32[2,48]{1,0:T(8,128)} get-tuple-element(%carried), index=1
  %start = (f32[2,48]{1,0}, f32[8,48]{1,0}) fusion(%get-tuple-element.2), kind=kCustom, calls=%fused_start
  %get-tuple-element.3 = f32[8,48]{1,0} get-tuple-element(%start), index=1
  %done = f32[8,48]{1,0} fusion(%get-tuple-element.2, %get-tuple-element.3), kind=kCustom, calls=%fused_done
  %after-all.1 = token[] after-all()
  %send.1 = (f32[2,48]{1,0}, u32[], token[]) send(%get-tuple-element.2, %after-all.1), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=2
  ROOT %tuple.1 = (s32[], f32[2,48]{1,0}) tuple(%add.1, %get-tuple-element.2)
}

%condition (carried.1: (s32[], f32[2,48])) -> pred[] {
  %carried.1 = (s32[], f32[2,48]{1,0}) parameter(0)
  %get-tuple-element.4 = s32[] get-tuple-element(%carried.1), index=0
  %constant.2 = s32[] constant(12)
  ROOT %lt.1 = pred[] compare(%get-tuple-element.4, %constant.2), direction=LT
}

ENTRY %main (x: f32[2,48]) -> f32[2,48] {
  %x = f32[2,48]{1,0:T(8,128)} parameter(0)
  %constant.3 = s32[] constant(3)
  %copy.1 = s32[] copy(%constant.3)
  %tuple.2 = (s32[], f32[2,48]{1,0}) tuple(%copy.1, %x)
  %while.1 = (s32[], f32[2,48]{1,0}) while(%tuple.2), condition=%condition, body=%body
  ROOT %result = f32[2,48]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_the_text_of_tpus():
    gather, between = found(TPU)
    assert (gather.kind, gather.axes, gather.count) == ("all-gather", ("fsdp", "model"), 9)  # from 3 up to 12
    assert gather.sent == 9 * 3 * 2 * WIDTH * 4
    assert (between.kind, between.axes, between.count) == ("all-reduce", (collectives.SLICES,), 9)


def test_the_compilers_cycles_count_turns_and_not_waiting():
    told = TPU.replace("kind=kCustom, calls=%fused_done", 'kind=kCustom, calls=%fused_done, {"estimated_cycles":"70"}')
    told = told.replace("send-done(%send.1)", 'send-done(%send.1), {"estimated_cycles":"1000"}')
    assert told.count("estimated_cycles") == 2
    assert hlo.cycles(hlo.parse(told)) == 9 * 70


def test_a_loop_that_cannot_be_told_is_named():
    module = hlo.parse(TPU.replace("direction=LT", "direction=NE"))
    assert {one.count for one in collectives.find(module, MESH)} == {1}
    assert module.unknown == {"while.1"}


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("no program at all")


@given(st.permutations(range(3)), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_groups_are_told_in_every_notation(order, cut):
    shape = (2, 3, 4)
    flat = np.arange(24).reshape(shape).transpose(order)
    size = int(np.prod(flat.shape[cut:]))
    expected = flat.reshape(-1, size)
    iota = f"replica_groups=[{24 // size},{size}]<=[2,3,4]T({','.join(map(str, order))}), x"
    listed = "replica_groups={" + ",".join("{" + ",".join(map(str, row)) + "}" for row in expected.tolist()) + "}"
    axes = ",".join(f"'a{i}'" for i in order[cut:])
    named = f"replica_groups=mesh['a0'=2,'a1'=3,'a2'=4] {{{axes}}}"
    transposed = f"[2,3,4]T({','.join(map(str, order))})"
    sizes = ",".join(f"'b{i}'={n}" for i, n in enumerate(flat.shape))
    axes = ",".join(f"'b{i}'" for i in range(cut, 3))
    permuted = f"replica_groups=mesh[{sizes}], device_ids=({transposed}) {{{axes}}}, x"
    for text in (iota, listed, permuted):
        assert collectives.members(text, 24).tolist() == expected[0].tolist()
    assert sorted(collectives.members(named, 24).tolist()) == sorted(expected[0].tolist())


def test_part_of_an_axis_and_all_devices():
    assert collectives.members("replica_groups=mesh['x'=8] {'x':(2)2}", 8).tolist() == [0, 2]
    assert collectives.members("replica_groups={}, to_apply=%add", 8).tolist() == list(range(8))
    assert collectives.members("replica_groups=a new notation", 8) is None


def test_time_on_the_links():
    chip = chips.CHIPS["v5e"]
    one = Collective("all-gather", ("fsdp",), group=16, count=3, operand=10**6, op_name="", links=4)
    assert one.seconds(chip) == pytest.approx(3 * 15e6 / 200e9)
    across = Collective("all-reduce", (collectives.SLICES,), group=2, count=1, operand=10**6, op_name="", links=0)
    assert across.seconds(chip) == pytest.approx(1e6 / chip.network)


LAYERS, TOKENS, HIDDEN = 6, 64, 256


def network(scan):
    def block(x, w):
        return x + jax.nn.gelu(x @ w) @ w.T, None

    def loss(weights, x):
        if scan:
            x, _ = jax.lax.scan(block, x, weights)
        else:
            x, _ = functools.reduce(lambda carry, w: block(carry[0], w), weights, (x, None))
        return jnp.mean(x**2)

    shapes = (
        jax.ShapeDtypeStruct((LAYERS, WIDTH, HIDDEN), jnp.float32),
        jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.float32),
    )
    return jax.jit(jax.grad(loss)).lower(*shapes).compile()


def test_traffic_is_the_compilers_where_there_is_no_loop():
    program = network(scan=False)
    assert traffic.bytes_moved(hlo.parse(program.as_text())) == pytest.approx(
        program.cost_analysis()["bytes accessed"], rel=0.01
    )


def test_traffic_of_a_loop_counts_its_turns_and_slices():
    program = network(scan=True)
    moved = traffic.bytes_moved(hlo.parse(program.as_text()))
    straight = traffic.bytes_moved(hlo.parse(network(scan=False).as_text()))
    # A scan moves its slices once more; reading whole stacks each turn would come to several times as much.
    assert straight < moved < 3 * straight
    assert program.cost_analysis()["bytes accessed"] < straight
