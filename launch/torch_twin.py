"""LU-ViT, its loss and its optimizer in PyTorch: what launch/benchmark_train.py times this project against.

The same function of the same parameters: :func:`load` takes them from Flax, and the benchmark refuses to time two that
differ. Written as a PyTorch user would write it: fused attention, fused AdamW, one softplus for the loss, no loops.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from torch import Tensor, nn

from repgls_jax.models.vit import Architecture


class Attention(nn.Module):
    """Multi-head attention of ``queries`` [b, q, d] over ``tokens`` [b, l, d]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        b, q, d = queries.shape

        def split(x: Tensor) -> Tensor:
            return x.view(b, -1, self.heads, d // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(queries)), split(self.key(tokens)), split(self.value(tokens))
        )
        return self.out(mixed.transpose(1, 2).reshape(b, q, d))


class Mlp(nn.Module):
    """Two dense layers with an erf GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, arch: Architecture, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(arch.width, eps=arch.norm_epsilon)
        self.attention = Attention(arch.width, arch.heads)
        self.mlp_norm = nn.LayerNorm(arch.width, eps=arch.norm_epsilon)
        self.mlp = Mlp(arch.width, arch.mlp)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        x = x + F.dropout(self.attention(y, y), self.dropout)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout)


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions down to one token a patch."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.halvings, channels = patch.bit_length() - 1, 1
        for i in range(self.halvings):
            features = width >> (self.halvings - 1 - i)
            setattr(self, f"conv_{i}", nn.Conv2d(channels, features, 3, 2, bias=False))
            setattr(self, f"norm_{i}", nn.GroupNorm(4, features, eps=1e-6))
            channels = features
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.halvings):
            # Flax pads an even side for a stride of 2 behind alone.
            x = getattr(self, f"conv_{i}")(F.pad(x, (0, 1, 0, 1)))
            x = F.relu(getattr(self, f"norm_{i}")(x))
        return self.project(x)


class Encoder(nn.Module):
    """Image [b, 1, h, w] to tokens [b, l, d]."""

    def __init__(self, arch: Architecture, tokens: int, dropout: float):
        super().__init__()
        self.arch = arch
        if arch.stem == "conv":
            self.stem = ConvStem(arch.width, arch.patch)
        else:
            self.embedding = nn.Conv2d(1, arch.width, arch.patch, arch.patch)
        self.position = nn.Parameter(torch.zeros(1, tokens, arch.width))
        for i in range(arch.depth):
            setattr(self, f"block_{i}", Block(arch, dropout))
        self.norm = nn.LayerNorm(arch.width, eps=arch.norm_epsilon)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images) if self.arch.stem == "conv" else self.embedding(images)
        x = x.flatten(2).transpose(1, 2) + self.position
        for i in range(self.arch.depth):
            x = getattr(self, f"block_{i}")(x)
        return self.norm(x)


class FindingHead(nn.Module):
    """One dot product a finding."""

    def __init__(self, findings: int, width: int):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.zeros(findings, width)), nn.Parameter(torch.zeros(findings))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.kernel).sum(-1) + self.bias


class LUViT(nn.Module):
    """Images [b, 1, h, w] uint8 to logits and rates [b, c]; architectures of :data:`repgls_jax.models.vit.SIZES`."""

    def __init__(self, arch: Architecture, findings: int, side: int, dropout: float = 0.0):
        super().__init__()
        self.encoder = Encoder(arch, (side // arch.patch) ** 2, dropout)
        self.queries = nn.Parameter(torch.zeros(1, findings, arch.width))
        self.read = Attention(arch.width, arch.heads)
        self.mlp_norm, self.norm = (nn.LayerNorm(arch.width, eps=1e-6) for _ in range(2))
        self.mlp = Mlp(arch.width, arch.mlp)
        self.presence, self.uncertainty = (FindingHead(findings, arch.width) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder((images.float() - 127.5) / 127.5)
        queries = self.queries.expand(len(images), -1, -1)
        y = queries + self.read(queries, tokens)
        y = self.norm(y + self.mlp(self.mlp_norm(y)))
        return self.presence(y), torch.tanh(self.uncertainty(y.detach()))


def load(model: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies Flax parameters (nested dicts of arrays, unrolled blocks) into the twin.

    Raises:
      ValueError: the parameters are not those of the twin; names what is left over on either side.
    """
    own = dict(model.named_parameters())
    modules = dict(model.named_modules())
    given = {}
    for path, value in flatten_dict(params, sep=".").items():
        parent, _, leaf = path.rpartition(".")
        module, array = modules.get(parent), np.array(value)
        if leaf == "scale" or (leaf == "kernel" and isinstance(module, nn.Linear | nn.Conv2d)):
            path = f"{parent}.weight"
        if isinstance(module, nn.Linear):
            array = array.reshape(module.in_features, -1).T if leaf == "kernel" else array.reshape(-1)
        elif isinstance(module, nn.Conv2d) and leaf == "kernel":
            array = array.transpose(3, 2, 0, 1)  # h, w, in, out -> out, in, h, w
        given[path] = array
    odd = sorted(set(own) ^ set(given)) or [n for n, a in given.items() if own[n].shape != a.shape]
    if odd:
        raise ValueError(f"the twin and the parameters differ in {', '.join(odd)}")
    with torch.no_grad():
        for path, array in given.items():
            own[path].copy_(torch.from_numpy(array.copy()))


def loss(outputs: tuple[Tensor, Tensor], labels: Mapping[str, Tensor], negative: Tensor, weight: float) -> Tensor:
    """GLS on given rates, and the Huber loss of the second head.

    Args:
      outputs: logits and rates [b, c].
      labels: ``y``, ``rate`` and ``wording`` [b, c] float32, ``mask`` and ``mentioned`` [b, c] bool.
      negative: scalar share of the negative rates that is in force.
      weight: of the second head's loss.
    """
    logits, predicted = (x.float() for x in outputs)
    r = labels["rate"].clamp(min=0) + negative * labels["rate"].clamp(max=0)
    m = (2 * labels["y"] - 1) * logits
    presence = F.softplus(-m) + 0.5 * r * torch.where(r < 0, m.clamp(max=4.0), m)
    error = F.huber_loss(predicted, labels["wording"], reduction="none", delta=0.25)
    return _mean(presence, labels["mask"]) + weight * _mean(error, labels["mentioned"])


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def make_step(
    model: LUViT,
    images: Tensor,
    labels: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    compiled: bool,
    half: bool,
) -> Callable[[], Tensor]:
    """One optimizer step on the same batch at every call; returns its loss, not waited for.

    Args:
      model: on its device.
      images: [b, 1, h, w] uint8.
      labels: of :func:`loss`.
      settings: learning_rate, weight_decay, clip, uncertainty_weight; ``schedule``, step -> factor of the learning
        rate; ``ramp``, step -> share of the negative rates.
      compiled: whether forward and backward pass go through torch.compile.
      half: whether they compute in bfloat16 (autocast).
    """
    groups = {True: settings["weight_decay"], False: 0.0}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if (p.ndim > 1) == wide], "weight_decay": decay}
            for wide, decay in groups.items()
        ],
        lr=settings["learning_rate"],
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings["schedule"])
    kind = images.device.type

    def forward(images: Tensor, negative: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
            outputs = model(images)
        return loss(outputs, labels, negative, settings["uncertainty_weight"])

    run = torch.compile(forward) if compiled else forward
    done = 0

    def step() -> Tensor:
        nonlocal done
        negative = torch.tensor(settings["ramp"](done), dtype=torch.float32).to(images.device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        value = run(images, negative)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        schedule.step()
        done += 1
        return value.detach()

    return step
