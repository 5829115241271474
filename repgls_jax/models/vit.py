"""Vision transformer encoder: image to tokens.

Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929), pre-norm. Separate query, key and value projections and the choice of
GELU keep the parameters interchangeable with the Hugging Face models, see :mod:`repgls_jax.models.pretrained`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repgls_jax.models import positions
from repgls_jax.models.attention import Attention
from repgls_jax.models.stem import ChannelGroupNorm, HalvingConv

DType = Any
Constrain = Callable[[Array], Array]
Turn = tuple[np.ndarray, np.ndarray]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # By erf, not JAX's erfc: that one is exact in the far tail too, where GELU is 0 anyway, at twice the cost.
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype))),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}

# What the forward pass keeps of a block for the backward pass; the rest is computed again.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,  # everything is kept
    # Products with weights. Not those of the attention: they are the large ones, and cheap.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,  # only the block's input
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything that fixes the encoder's parameters and function, but not how it is computed.

    Attributes:
      width: d of the tokens; a multiple of ``heads``.
      depth: number of blocks.
      heads: attention heads.
      mlp: hidden width of the MLPs.
      stem: patch embedding. "patch" is the single strided projection of the paper; "conv" is a stack of stride-2
        convolutions (Xiao et al., NeurIPS 2021, arXiv 2106.14881), which learns from few films and little compute.
      patch: patch side in pixels.
      class_token: whether a learned token stands in front of the patches.
      registers: number of further learned tokens between it and the patches (Darcet et al., arXiv 2309.16588).
      position: "learned" adds an embedding to each patch; "rope" turns queries and keys in every block.
      rope_theta: base of the rotary periods.
      activation: of the MLPs, one of :data:`ACTIVATIONS`.
      gated: whether the MLPs are gated (Shazeer, arXiv 2002.05202): down(activation(gate(x)) * up(x)).
      layer_scale: initial value of a learned scale per channel on each residual branch; 0 for none.
      bias: which of the query, key and value projections have a bias, as letters of "qkv".
      norm_epsilon: of the encoder's LayerNorms.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    stem: str = "patch"
    patch: int = 16
    class_token: bool = False
    registers: int = 0
    position: str = "learned"
    rope_theta: float = 100.0
    activation: str = "gelu"
    gated: bool = False
    layer_scale: float = 0.0
    bias: str = "qkv"
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Raises ValueError, naming everything that does not fit together."""
        problems = []
        if min(self.width, self.depth, self.heads, self.mlp, self.patch) < 1 or self.width % max(self.heads, 1):
            problems.append(f"width {self.width} is not a multiple of {self.heads} heads, or a number is not positive")
        elif self.position == "rope" and self.width // self.heads % 4:
            problems.append(f"heads of {self.width // self.heads} channels cannot be turned: not a multiple of 4")
        if self.stem not in ("patch", "conv"):
            problems.append(f"stem {self.stem!r} is unknown; expected patch or conv")
        if self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1)):
            problems.append(f"a convolutional stem halves the picture; its patch is a power of 2, not {self.patch}")
        if self.position not in ("learned", "rope"):
            problems.append(f"position {self.position!r} is unknown; expected learned or rope")
        if self.activation not in ACTIVATIONS:
            problems.append(f"activation {self.activation!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
        if self.bias not in ("qkv", "qv", ""):
            problems.append(f"bias {self.bias!r} is unknown; expected 'qkv', 'qv' or ''")
        if problems:
            raise ValueError("architecture: " + "; ".join(problems))

    @property
    def prefix(self) -> int:
        """Number of tokens in front of the patches."""
        return int(self.class_token) + self.registers


SIZES: dict[str, Architecture] = {
    "tiny": Architecture(32, 1, 2, 64, "conv"),  # for tests
    "demo": Architecture(128, 2, 4, 256, "conv"),
    "Ti": Architecture(192, 12, 3, 768),
    "S": Architecture(384, 12, 6, 1536),
    "B": Architecture(768, 12, 12, 3072),
    "L": Architecture(1024, 24, 16, 4096),
    "H": Architecture(1280, 32, 16, 5120),
    "So400m": Architecture(1152, 27, 16, 4304),  # Alabdulmohsin et al., NeurIPS 2023, arXiv 2305.13035
}


def parse_model(name: str) -> tuple[Architecture, int]:
    """Architecture and patch side of a name such as "S/16".

    Raises:
      ValueError: the name is not SIZE/PATCH with a known size and a patch of 8, 14 or 16 pixels.
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in ("8", "14", "16"):
        raise ValueError(
            f"model {name!r} is unknown; expected SIZE/PATCH with SIZE in {list(SIZES)} and PATCH 8, 14 or 16"
        )
    if SIZES[size].stem == "conv" and patch == "14":
        raise ValueError(f"model {name!r}: a convolutional stem halves the picture; its patch is 8 or 16")
    return dataclasses.replace(SIZES[size], patch=int(patch)), int(patch)


def identity(x: Array) -> Array:
    """No constraint on where activations live."""
    return x


def dropped(x: Array, bits: Array, rate: float) -> Array:
    """Dropout (Srivastava et al., JMLR 2014): ``x``, of which a share ``rate`` is 0 and the rest is scaled up for it.

    Args:
      x: any shape and type.
      bits: of its shape, uint32, uniform in [0, 2**16).
      rate: in [0, 1); rounded to 1 / 2**16, and so is the scale.
    """
    zeros = min(round(rate * 2**16), 2**16 - 1)
    return jnp.where(bits >= zeros, x * (2**16 / (2**16 - zeros)), 0)


class Mlp(nn.Module):
    """Two dense layers with an activation, or three with a gate: [..., d] to [..., d]."""

    hidden: int
    dtype: DType = None
    activation: str = "gelu"
    gated: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activate = ACTIVATIONS[self.activation]
        width = x.shape[-1]
        y = nn.Dense(self.hidden, dtype=self.dtype, name="up")(x)
        y = activate(nn.Dense(self.hidden, dtype=self.dtype, name="gate")(x)) * y if self.gated else activate(y)
        return nn.Dense(width, dtype=self.dtype, name="down")(y)


class Block(nn.Module):
    """Pre-norm transformer block: [b, l, d] to [b, l, d]. Attributes as in :class:`VisionTransformer`."""

    heads: int
    mlp: int
    dropout: float = 0.0
    dtype: DType = None
    activation: str = "gelu"
    gated: bool = False
    layer_scale: float = 0.0
    bias: str = "qkv"
    norm_epsilon: float = 1e-6
    attention: str = "xla"
    constrain: Constrain = identity

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        train: bool = False,
        rate: Array | None = None,
        turn: Turn | None = None,
    ) -> Array:
        """One block.

        Args:
          x: tokens.
          mask: [b, l, l] bool, True = visible.
          train: draws dropout and ``rate`` from the rng "dropout".
          rate: share of samples, in [0, 1), for which a residual branch is left out in training (stochastic depth,
            Huang et al., arXiv 1603.09382); the others' are scaled up to make up for it. None leaves none out.
          turn: rotary embedding.
        """
        # One draw serves both branches, 16 bits each: random numbers are a tenth of a small model's step on a CPU.
        bits = jax.random.bits(self.make_rng("dropout"), x.shape) if train and self.dropout else None

        def add(x: Array, branch: Array, name: str, shift: int) -> Array:
            if self.layer_scale:
                scale = self.param(name, nn.initializers.constant(self.layer_scale), (x.shape[-1],))
                branch = branch * scale.astype(branch.dtype)
            if bits is not None:
                branch = dropped(branch, bits >> shift & 0xFFFF, self.dropout)
            if train and rate is not None:
                kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (x.shape[0], 1, 1))
                branch = branch * (kept / (1 - rate)).astype(branch.dtype)
            return x + branch

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="attention_norm")(x)
        read = Attention(self.heads, self.dtype, self.bias, self.attention, name="attention")
        x = add(x, read(y, y, mask, turn), "attention_scale", 0)
        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="mlp_norm")(x)
        y = Mlp(self.mlp, self.dtype, self.activation, self.gated, name="mlp")(y)
        return self.constrain(add(x, y, "mlp_scale", 16))


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions down to one token a patch: [b, h, w, 1] to [b, h / patch, w / patch, d]."""

    width: int
    patch: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        halvings = self.patch.bit_length() - 1
        for i in range(halvings):
            features = self.width >> (halvings - 1 - i)
            x = HalvingConv(features, self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.relu(ChannelGroupNorm(4, self.dtype, name=f"norm_{i}")(x))
        return nn.Conv(self.width, (1, 1), dtype=self.dtype, name="project")(x)


class VisionTransformer(nn.Module):
    """Image [b, h, w, 1] float to tokens [b, prefix + l, d], l = (h / patch) (w / patch), normed.

    In front of the patches, row by row, stand the class token and the registers, where the architecture has them.

    Attributes:
      architecture: what is computed.
      dropout: on the residual branches, in [0, 1).
      drop_path: stochastic depth of the last block, in [0, 1); rises linearly from 0 in the first.
      dtype: of the computation (parameters stay float32); None keeps the input's.
      remat: what the backward pass computes again, one of :data:`REMAT`.
      scan: one compiled block for all (parameters in "blocks", with a leading axis over the depth) instead of one after
        the other ("block_0", ...); see :func:`stack_blocks`.
      attention: implementation, see :func:`repgls_jax.models.attention.choose`.
      constrain: applied to the tokens after the embedding and after every block; for sharding.
    """

    architecture: Architecture
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: DType = None
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"
    constrain: Constrain = identity

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        arch = self.architecture
        _, h, w, _ = images.shape
        if h % arch.patch or w % arch.patch:
            raise ValueError(f"image of {h} x {w} pixels is not divisible into patches of {arch.patch}")
        x = self.constrain(self._embed(images))
        turn = None
        if arch.position == "rope":
            rows, columns = h // arch.patch, w // arch.patch
            turn = positions.rotary(rows, columns, arch.width // arch.heads, arch.rope_theta, arch.prefix)
        x = self._blocks(x, train, turn)
        return nn.LayerNorm(epsilon=arch.norm_epsilon, dtype=self.dtype, name="norm")(x)

    def _embed(self, images: Array) -> Array:
        """Patches with their positions, and the tokens in front."""
        arch = self.architecture
        if arch.stem == "conv":
            x = ConvStem(arch.width, arch.patch, self.dtype, name="stem")(images)
        else:
            side = (arch.patch, arch.patch)
            x = nn.Conv(arch.width, side, side, padding="VALID", dtype=self.dtype, name="embedding")(images)
        x = x.reshape(images.shape[0], -1, arch.width)
        normal = nn.initializers.normal(0.02)
        if arch.position == "learned":
            x = x + self.param("position", normal, (1, x.shape[1], arch.width)).astype(x.dtype)
        front = []
        if arch.class_token:
            front.append(self.param("class_token", normal, (1, 1, arch.width)))
        if arch.registers:
            front.append(self.param("registers", normal, (1, arch.registers, arch.width)))
        tokens = [jnp.broadcast_to(t.astype(x.dtype), (x.shape[0], *t.shape[1:])) for t in front]
        return jnp.concatenate([*tokens, x], axis=1) if tokens else x

    def _blocks(self, x: Array, train: bool, turn: Turn | None) -> Array:
        arch = self.architecture
        if self.remat not in REMAT:
            raise ValueError(f"remat {self.remat!r} is unknown; expected one of {', '.join(REMAT)}")
        rates = np.linspace(0, self.drop_path, arch.depth, dtype=np.float32)

        def apply(block: Block, x: Array, rate: Array) -> tuple[Array, None]:
            return block(x, None, train, rate if self.drop_path else None, turn), None

        def block(name: str) -> Block:
            return Block(
                arch.heads,
                arch.mlp,
                self.dropout,
                self.dtype,
                arch.activation,
                arch.gated,
                arch.layer_scale,
                arch.bias,
                arch.norm_epsilon,
                self.attention,
                self.constrain,
                name=name,
            )

        step = apply
        if self.remat != "none":
            # Inside a scan nothing can be merged with the forward pass, so that the barriers against it can go.
            step = nn.remat(apply, policy=REMAT[self.remat], prevent_cse=not self.scan)
        if self.scan:
            axes: dict[Any, Any] = {"params": 0, "intermediates": 0}
            rngs: dict[Any, bool] = {"params": True, "dropout": True}
            scanned = nn.scan(step, variable_axes=axes, split_rngs=rngs, length=arch.depth)
            return scanned(block("blocks"), x, jnp.asarray(rates))[0]
        for i in range(arch.depth):
            x, _ = step(block(f"block_{i}"), x, rates[i])
        return x


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled encoder for a scanned one, in whichever nested dicts hold "block_0", "block_1", ...

    They become "blocks", whose arrays have a leading axis over the depth. NumPy arrays stay NumPy arrays.

    Raises:
      ValueError: blocks are missing or differ in their parameters.
    """
    names = sorted((n for n in params if re.fullmatch(r"block_\d+", n)), key=lambda n: int(n[6:]))
    if names != [f"block_{i}" for i in range(len(names))]:
        raise ValueError(f"blocks are {', '.join(names)}; expected every number from 0 on")
    others = {n: stack_blocks(v) if isinstance(v, Mapping) else v for n, v in params.items() if n not in names}
    if not names:
        return others

    def stack(*leaves: Any) -> Any:
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    return others | {"blocks": jax.tree.map(stack, *(params[n] for n in names))}


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`stack_blocks`."""
    others = {n: unstack_blocks(v) if isinstance(v, Mapping) else v for n, v in params.items() if n != "blocks"}
    if "blocks" not in params:
        return others
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return others | {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}
