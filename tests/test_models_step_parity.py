"""One training step of LU-ViT S/16 on films of 224 pixels against torch: loss, every gradient, AdamW; needs torch."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from repgls_jax import losses  # noqa: E402
from repgls_jax.models import luvit  # noqa: E402

B, C, SIDE = 2, 14, 224
ADAMW = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.05}
# The compiler spends its time on code that runs once.
JIT = {"compiler_options": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}


def norm(p, name, x, epsilon=1e-6):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], epsilon)


def attend(p, name, queries, tokens):
    def project(part, x):
        return torch.einsum("bld,dhk->bhlk", x, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"][:, None]

    mixed = F.scaled_dot_product_attention(project("query", queries), project("key", tokens), project("value", tokens))
    return torch.einsum("bhlk,hkd->bld", mixed, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]


def mlp(p, name, x):
    hidden = F.gelu(F.linear(x, p[f"{name}/up/kernel"].T, p[f"{name}/up/bias"]))
    return F.linear(hidden, p[f"{name}/down/kernel"].T, p[f"{name}/down/bias"])


def twin(p, images, depth):
    """LU-ViT in torch, on parameters by path: logits [b, c]."""
    x = torch.tensor(images, dtype=torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
    kernel = p["encoder/embedding/kernel"].permute(3, 2, 0, 1)
    x = F.conv2d(x, kernel, p["encoder/embedding/bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = x + p["encoder/position"]
    for name in (f"encoder/block_{i}" for i in range(depth)):
        y = norm(p, f"{name}/attention_norm", x)
        x = x + attend(p, f"{name}/attention", y, y)
        x = x + mlp(p, f"{name}/mlp", norm(p, f"{name}/mlp_norm", x))
    tokens = norm(p, "encoder/norm", x)
    queries = p["queries"].expand(len(x), -1, -1)
    y = queries + attend(p, "read", queries, tokens)
    y = y + mlp(p, "mlp", norm(p, "mlp_norm", y))
    y = norm(p, "norm", y)
    rate = (y.detach() * p["uncertainty/kernel"]).sum(-1) + p["uncertainty/bias"]
    return (y * p["presence/kernel"]).sum(-1) + p["presence/bias"], rate.tanh()


def test_one_step_is_that_of_torch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (B, SIDE, SIDE, 1), dtype=np.uint8)
    y, r = rng.integers(0, 2, (B, C)), rng.uniform(-0.4, 0.8, (B, C)).astype(np.float32)
    net = luvit.build("S/16", C)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
    # No zero and no one, so that nothing is left out by chance.
    params = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    tx = optax.adamw(**ADAMW)

    def objective(params):
        out = net.apply({"params": params}, images, train=True)
        return losses.gls_binary(out["logits"], jnp.asarray(y), jnp.asarray(r)).mean() + out["rate"].mean()

    def step(params):
        value, grads = jax.value_and_grad(objective)(params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return value, grads, optax.apply_updates(params, updates)

    value, grads, stepped = jax.jit(step, **JIT)(params)
    ours, grads, stepped = (flax.traverse_util.flatten_dict(t, sep="/") for t in (params, grads, stepped))

    theirs = {path: torch.tensor(x, requires_grad=True) for path, x in ours.items()}
    betas = (ADAMW["b1"], ADAMW["b2"])
    optimizer = torch.optim.AdamW(
        theirs.values(), ADAMW["learning_rate"], betas, ADAMW["eps"], weight_decay=ADAMW["weight_decay"]
    )
    logits, rate = twin(theirs, images, net.architecture.depth)
    target = torch.tensor((1 - r) * y + r / 2, dtype=torch.float32)
    loss = F.binary_cross_entropy_with_logits(logits, target) + rate.mean()
    loss.backward()
    optimizer.step()

    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    gradients = {path: x.grad.numpy() for path, x in theirs.items()}
    whole = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
    for path, g in gradients.items():
        # Softmax does not feel what is added to all keys: their bias has rounding errors for a gradient, and decays.
        rounding = path.endswith("key/bias")
        size = np.linalg.norm(g)
        assert rounding or size > 1e-8 * whole, path  # rounding is below 1e-9 of it
        floor = 1e-3 * whole if rounding else 0.0
        assert np.linalg.norm(grads[path] - g) <= 1e-4 * max(size, floor), path
        wanted = theirs[path].detach().numpy()
        assert np.linalg.norm(stepped[path] - wanted) <= 1e-4 * np.linalg.norm(wanted), path
        assert rounding or np.linalg.norm(wanted - ours[path]) > 1e-3 * np.linalg.norm(wanted), path
