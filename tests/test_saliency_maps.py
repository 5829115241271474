"""Maps against torch and numpy twins, and what must hold of any map."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repgls_jax.models import luvit, vit
from repgls_jax.saliency import maps, observe, scoring

C, SIDE = 3, 32
PLAIN = vit.Architecture(16, 2, 2, 32, patch=8)
TOKENS = dataclasses.replace(PLAIN, class_token=True, registers=2)
ROPE = dataclasses.replace(TOKENS, position="rope", gated=True, layer_scale=0.3)
# The compiler spends its time on code that runs once.
JIT = {"compiler_options": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}
ARCHITECTURES = {"plain": PLAIN, "tokens": TOKENS, "rope": ROPE, "conv": dataclasses.replace(PLAIN, stem="conv")}


def network(architecture, scan=False, seed=0):
    """A model with random parameters, none of them zero, and some films."""
    model = luvit.build("", C, architecture=architecture, scan=scan)
    rng = np.random.default_rng(seed)
    films = rng.integers(0, 256, (4, SIDE, SIDE, 1), dtype=np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), films)["params"]
    return model, jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes), films


@functools.cache
def compute_of(name, methods=tuple(maps.METHODS)):
    """All maps by a network of :data:`ARCHITECTURES`, compiled once."""
    model, _, _ = network(ARCHITECTURES[name])
    return jax.jit(lambda params, films: maps.compute(model, params, films, methods), **JIT)


def close(found, wanted, tolerance=1e-5):
    """By the size of the largest value."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * max(np.abs(wanted).max(), 1e-12)


def torch_pass(architecture, params, films, blocks):
    """LU-ViT in torch, float64: logits, the tokens behind some blocks, and the read-out's attention."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    p = {
        "/".join(k.key for k in path): torch.tensor(np.asarray(x), dtype=torch.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }

    def norm(name, x):
        return functional.layer_norm(x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)

    def attend(name, queries, tokens):
        def project(part, x):
            return torch.einsum("bld,dhk->bhlk", x, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"][:, None]

        q, k, v = project("query", queries), project("key", tokens), project("value", tokens)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhlk,hkd->bld", weights @ v, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"], weights

    def mlp(name, x):
        hidden = functional.gelu(x @ p[f"{name}/up/kernel"] + p[f"{name}/up/bias"])
        return hidden @ p[f"{name}/down/kernel"] + p[f"{name}/down/bias"]

    x = torch.tensor(films, dtype=torch.float64).permute(0, 3, 1, 2) / 127.5 - 1
    kernel = p["encoder/embedding/kernel"].permute(3, 2, 0, 1)
    x = functional.conv2d(x, kernel, p["encoder/embedding/bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    front = [p[f"encoder/{name}"] for name in ("class_token", "registers") if f"encoder/{name}" in p]
    x = torch.cat([*(t.expand(len(x), -1, -1) for t in front), x + p["encoder/position"]], dim=1)
    for i in range(architecture.depth):
        y = norm(f"encoder/block_{i}/attention_norm", x)
        x = x + attend(f"encoder/block_{i}/attention", y, y)[0]
        x = x + mlp(f"encoder/block_{i}/mlp", norm(f"encoder/block_{i}/mlp_norm", x))
        if i + 1 == blocks:
            kept = x = x.detach().requires_grad_()
    tokens = norm("encoder/norm", x)
    if blocks == -1:
        kept = tokens = tokens.detach().requires_grad_()
    if architecture.registers:
        tokens = torch.cat([tokens[:, :1], tokens[:, architecture.prefix :]], dim=1)
    queries = p["queries"].expand(len(x), -1, -1)
    read, weights = attend("read", queries, tokens)
    y = queries + read
    y = y + mlp("mlp", norm("mlp_norm", y))
    return (norm("norm", y) * p["presence/kernel"]).sum(-1) + p["presence/bias"], kept, weights


@pytest.mark.parametrize(("name", "blocks"), [("plain", 1), ("tokens", -1)])
def test_gradient_maps_and_attention_are_those_of_torch(name, blocks):
    architecture = ARCHITECTURES[name]
    _, params, films = network(architecture)
    suffix = "" if blocks == -1 else f"@{blocks}"
    methods = (f"grad_cam{suffix}", f"hires_cam{suffix}", "attention", "rollout")
    found = compute_of(name, methods)(params, films)["maps"]
    for k in range(C):
        logits, tokens, weights = torch_pass(architecture, params, films, blocks)
        gradients = []
        tokens.register_hook(gradients.append)
        logits[:, k].sum().backward()
        patches, gradient = (x.detach()[:, architecture.prefix :] for x in (tokens, gradients[0]))
        wanted = {
            methods[0]: (patches * gradient.mean(1, keepdim=True)).sum(-1).relu(),
            methods[1]: (patches * gradient).sum(-1).relu(),
            "attention": weights.detach().mean(1)[:, k, int(architecture.class_token) :],
        }
        for method, values in wanted.items():
            assert values.max() > 1e-4  # not rounding
            close(found[method][:, k], values.reshape(len(films), 4, 4))


@pytest.mark.parametrize("name", ["tokens", "rope", "conv"])
def test_attention_sums_to_one_and_rollout_is_the_product_of_its_matrices(name):
    architecture = ARCHITECTURES[name]
    model, params, films = network(architecture)

    def run(params, films):
        seen = observe.forward(model, params, films)
        return seen, maps.rollout(seen, None, architecture.prefix), model.apply({"params": params}, films)

    seen, rolled, out = jax.jit(run, **JIT)(params, films)
    close(seen.logits, out["logits"])
    close(seen.rate, out["rate"])
    assert sorted(seen.attention) == ["block_0", "block_1", observe.READ]
    for weights in seen.attention.values():
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
    joint = np.eye(architecture.prefix + 16)[None]
    for i in range(architecture.depth):
        mean = np.asarray(seen.attention[f"block_{i}"], np.float64).mean(axis=1)
        residual = mean + np.eye(mean.shape[-1])
        joint = (residual / residual.sum(axis=-1, keepdims=True)) @ joint
    read = np.asarray(seen.attention[observe.READ], np.float64).mean(axis=1)
    whole = np.zeros((len(films), C, joint.shape[-1]))
    whole[..., architecture.prefix :] = read[..., -16:]
    if architecture.class_token:
        whole[..., 0] = read[..., 0]
    close(rolled, (whole @ joint)[..., architecture.prefix :])


def test_scanned_blocks_give_the_same_maps():
    model, params, films = network(TOKENS, scan=True)
    assert "blocks" in params["encoder"]
    plain, own = observe.unrolled(model, params)
    assert not plain.scan
    found = compute_of("tokens")(own, films)
    close(
        found["probability"],
        jax.jit(lambda p, x: jax.nn.sigmoid(model.apply({"params": p}, x)["logits"]))(params, films),
    )
    again = observe.unrolled(plain, own)[1]
    jax.tree.map(np.testing.assert_array_equal, own, again)


def test_a_film_has_the_same_maps_in_any_batch():
    _, params, films = network(TOKENS)
    compute = compute_of("tokens")
    together = jax.device_get(compute(params, films))
    for i in range(len(films)):
        alone = compute(params, films[[i] * len(films)])
        jax.tree.map(lambda a, b, i=i: close(a[0], b[i]), alone, together)
    padded = scoring.Explainer(compute, params, 8, tuple(maps.METHODS), len(films)).explain(
        np.tile(films, (2, 1, 1, 1))[:7]
    )
    jax.tree.map(lambda a, b: close(a, np.concatenate([b, b])[:7]), padded, together)


def test_a_finding_has_its_gradient_from_its_own_logit():
    _, params, films = network(TOKENS)
    compute = compute_of("tokens")
    before = compute(params, films)["maps"]
    changed = dict(params) | {"presence": {k: np.array(v) for k, v in params["presence"].items()}}
    changed["presence"]["kernel"][1:] += 1.0
    after = compute(changed, films)["maps"]
    for method in maps.NEED_GRADIENT:
        np.testing.assert_array_equal(before[method][:, 0], after[method][:, 0])
        assert np.abs(before[method][:, 1:] - after[method][:, 1:]).max() > 1e-3
    # The weights of a logit do not change where its query looks.
    for method in ("attention", "rollout"):
        np.testing.assert_array_equal(before[method], after[method])


def test_every_method_has_a_title_and_unknown_ones_are_refused():
    assert set(maps.TITLES) == set(maps.METHODS) >= maps.NEED_GRADIENT
    model, _, _ = network(PLAIN)
    with pytest.raises(ValueError, match="expected grad_cam"):
        maps.make(model, ["grad_cam", "lime"])
    with pytest.raises(ValueError, match="behind 3 blocks: this encoder has 2"):
        maps.make(model, ["hires_cam@3"])
    for method in ("rollout@1", "grad_cam@", "grad_cam@x"):
        with pytest.raises(ValueError, match="with blocks"):
            maps.parse(method)
    assert maps.title("grad_cam@1") == "Grad-CAM, behind 1 block"
    assert maps.title("hires_cam@0") == "HiResCAM, before the blocks"
    assert [observe.passed(model, k) for k in (0, -1, -2, -3)] == [0, 2, 1, 0]


def test_maps_of_half_precision_are_single():
    _, params, films = network(PLAIN)
    half = luvit.build("", C, architecture=PLAIN, dtype="bfloat16")
    found = jax.eval_shape(lambda p, x: maps.compute(half, p, x, tuple(maps.METHODS)), params, films)
    for values in found["maps"].values():
        assert values.dtype == jnp.float32
        assert values.shape == (4, C, 4, 4)
