"""Every method in the train step: the same on eight devices, in micro-batches and after a resume; its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training

from repgls_jax import losses, methods
from repgls_jax.memory import Memory
from repgls_jax.methods import METHODS
from repgls_jax.policies import PolicyConfig
from repgls_jax.train import loop, luvit, sharding
from repgls_jax.train.state import TrainState, create
from repgls_jax.train.step import make_train_step

N, B, C, STEPS = 40, 16, 4, 3
TX = optax.sgd(0.5)
QUICK = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


class Linear:
    """A network of two matrices that answers as LU-ViT does, on tokens [b, 8]."""

    def apply(self, variables, images, train, rngs):
        z = images @ variables["params"]["presence"]["kernel"]
        return {"logits": z, "rate": jnp.tanh(z), "third": images @ variables["params"]["third"]["kernel"]}


def known() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = rng.integers(-2, 2, (N, C)).astype(np.int8)
    p = np.select([state == 1, state == 0, state == -1], [1.0, 0.0, rng.uniform(0.2, 0.9, (N, C))], np.nan)
    rate = rng.uniform(-0.3, 0.9, (N, C)).astype(np.float32)
    belief, truth = rng.uniform(0, 1, (N, C)).astype(np.float32), (state == 1).astype(np.int8)
    observed = rng.random((N, C)) < 0.8
    return {"state": state, "p": p.astype(np.float32), "observed": observed, "rate": rate} | {
        "belief": belief,
        "truth": truth,
    }


def batch(step: int) -> dict[str, np.ndarray]:
    """A batch with one example in it twice, whose films differ."""
    rng = np.random.default_rng(step + 1)
    index = rng.permutation(N)[:B].astype(np.int32)
    index[9] = index[2]
    tokens = rng.normal(0, 1, (B, 8)).astype(np.float32)
    return {"image": tokens, "index": index, **{k: v[index] for k, v in known().items()}}


def params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {name: {"kernel": jnp.float32(rng.normal(0, 0.5, (8, C)))} for name in ("presence", "third")}


def fresh(name: str) -> TrainState:
    config = PolicyConfig(name)
    memory = methods.start(config, methods.values(config), known())
    return create(params(), TX, 3, memory=memory, peer=params(1) if METHODS[name].networks == 2 else None)


def trained(name: str, devices: int, accumulate: int = 1) -> TrainState:
    """The state after some steps, with what the method does between them."""
    config = PolicyConfig(name, warmup=0.0, ramp=0.5)
    mesh = sharding.make_mesh("dp", jax.devices()[:devices])
    placed = sharding.shard_state(fresh(name), mesh, "dp")
    state = jax.device_put(fresh(name), placed)
    step = make_train_step(luvit.make_loss(Linear(), config, 10, 0.1), TX, accumulate)
    batches = [sharding.put_batch(batch(i), mesh) for i in range(STEPS)]
    compiled = jax.jit(step, out_shardings=(placed, None)).lower(state, batches[0]).compile(compiler_options=QUICK)
    hook = METHODS[name].hook
    for made in batches:
        state, scalars = compiled(state, made)
        assert np.isfinite(float(scalars["loss"]))
        if hook and int(state.step) == 1:
            state = state.replace(memory=jax.device_put(revised(name, state), placed.memory))
    return jax.device_get(state)


def revised(name: str, state: TrainState) -> Memory:
    config, z = PolicyConfig(name), np.random.default_rng(7).normal(0, 1, (N, C)).astype(np.float32)
    seen = methods.view(config, methods.values(config), known(), jnp.asarray(z))
    return METHODS[name].hook.apply(jax.device_get(state.memory), seen, seen, methods.values(config))


one_device = functools.cache(functools.partial(trained, devices=1))


@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_train_as_one(name):
    one, eight = one_device(name), trained(name, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), eight, one)
    assert not np.allclose(one.params["presence"]["kernel"], params()["presence"]["kernel"])
    assert (one.peer is None) == (METHODS[name].exchange is None)
    assert (one.memory is None) == (METHODS[name].memory is None)


# What compares examples within the batch, or draws, differs between micro-batches.
@pytest.mark.parametrize("name", ["elr", "confident", "fitted"])
def test_micro_batches_remember_the_same(name):
    whole, parts = one_device(name), trained(name, 1, accumulate=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), parts, whole)


@pytest.mark.parametrize("name", ["elr", "coteaching", "mixup"])
def test_films_are_not_mixed_where_single_ones_count(name):
    with pytest.raises(ValueError, match=rf"mixup is 0.2, but '{name}' .*set it to 0"):
        luvit.make_loss(Linear(), PolicyConfig(name), 10, 0.1, 0.2)


def test_both_networks_are_taught():
    state, other = one_device("coteaching"), params(1)["presence"]["kernel"]
    assert not np.allclose(state.peer.params["presence"]["kernel"], other)
    assert state.weights is state.params


def test_memory_reads_and_writes_rows_and_the_last_of_two_counts():
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    memory = Memory({"a": jnp.asarray(rows), "b": jnp.ones(5)}, {"s": jnp.float32(2)})
    index = jnp.asarray([3, 1, 3, 0])
    np.testing.assert_array_equal(memory.take(index).rows["a"], rows[[3, 1, 3, 0]])
    new = jnp.float32([[10, 10], [20, 20], [30, 30], [40, 40]])
    put = jax.jit(lambda m: m.put(index, {"a": new}))(memory)
    np.testing.assert_array_equal(put.rows["a"], [[40, 40], [20, 20], rows[2], [30, 30], rows[4]])
    training.same((put.rows["b"], put.shared), (memory.rows["b"], memory.shared))


def remembering(params, batch, key, step, memory):
    """The trainer's tiny loss for two networks, pulled to what is remembered, and new rows of the memory."""
    first, second = params
    terms = training.loss(first, batch, key, step)
    pull = memory.shared["pull"] * (first["presence"]["kernel"].sum() - memory.rows["seen"]) ** 2
    peer = training.loss(second, batch, key, step)["presence"]
    rows = {"seen": memory.rows["seen"] + jax.lax.stop_gradient(first["presence"]["kernel"].sum())}
    return losses.Told(terms | {"pull": losses.Term(pull, jnp.ones_like(pull)), "peer": peer}, rows)


def task(**changes) -> loop.Task:
    memory = Memory({"seen": np.zeros(training.EXAMPLES, np.float32)}, {"pull": np.float32(1e-3)})

    def revise(state: TrainState, mesh) -> Memory:
        held = jax.device_get(state.memory)
        return held.replace(shared={"pull": np.float32(0.5) * held.shared["pull"] + np.abs(held.rows["seen"]).mean()})

    settings = {"loss": remembering, "memory": memory, "networks": 2, "revise": revise, "revised": (3, 6)}
    return training.task(**(settings | changes))


@pytest.mark.parametrize("mesh", ["dp", "fsdp"])
def test_a_run_with_memory_and_two_networks_resumes_bit_by_bit(tmp_path, mesh):
    """Cut after step 6, of which the checkpoint is that of step 4: what was done between steps is done again."""
    run = functools.partial(training.run, steps=10, mesh=mesh, devices=8 if mesh == "fsdp" else 1)
    whole, told = run(tmp_path / "whole", made=task())
    assert [entry["step"] for entry in training.told(tmp_path / "whole", "revised")] == [3, 6]
    batches = task().batches

    class StopError(Exception):
        pass

    def until_six(start: int):
        for step, made in zip(range(start, 6), batches(start), strict=False):
            del step
            yield made
        raise StopError

    with pytest.raises((StopError, RuntimeError)):
        run(tmp_path / "cut", made=task(batches=until_six))
    resumed, again = run(tmp_path / "cut", made=task())
    training.same(whole, resumed)
    assert again == told
    assert not np.array_equal(*(jax.device_get(net["presence"]["kernel"]) for net in whole.networks))
    assert np.count_nonzero(whole.memory.rows["seen"]) > 50
