"""Floating-point operations, a multiply-add counting two: of the model by formula, and of a traced function.

The formula gives what a step needs; the trace what it does, recomputation included. ``cost_analysis()`` of a compiled
program counts the body of a loop once and is compared with both in the tests, on programs without loops.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from repgls_jax.models.luvit import LUViT


def forward(model: LUViT, side: int) -> int:
    """Operations of the matrix products in one forward pass of a film of ``side`` pixels."""
    arch, c = model.architecture, model.findings
    d, patches = arch.width, (side // arch.patch) ** 2
    tokens, read = patches + arch.prefix, patches + int(arch.class_token)
    layers = 3 if arch.gated else 2
    block = 2 * tokens * (4 * d * d + layers * d * arch.mlp) + 4 * tokens * tokens * d
    # The read-out: c queries ask, the tokens answer, then an MLP of the queries and two heads of one product a finding.
    answer = 4 * (c + read) * d * d + 4 * c * read * d + 4 * c * d * arch.mlp + 4 * c * d
    return _stem(model, side) + arch.depth * block + answer


def training(model: LUViT, side: int) -> int:
    """Operations of a training step for one film, without recomputation: the backward pass takes two forward passes."""
    return 3 * forward(model, side)


def _stem(model: LUViT, side: int) -> int:
    arch = model.architecture
    patches = (side // arch.patch) ** 2
    if arch.stem == "patch":
        return 2 * patches * arch.patch**2 * arch.width
    total, channels, halvings = 2 * patches * arch.width**2, 1, arch.patch.bit_length() - 1
    for i in range(halvings):
        features = arch.width >> (halvings - 1 - i)
        total += 2 * (side >> (i + 1)) ** 2 * 9 * channels * features
        channels = features
    return total


def traced(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of the matrix products and convolutions in ``function(*arguments)``; arguments may be shapes."""
    return counted(jax.make_jaxpr(function)(*arguments))


def counted(trace: ClosedJaxpr) -> int:
    """The same of a trace, without what the compiler drops because nothing uses it."""
    kept, _ = partial_eval.dce_jaxpr(trace.jaxpr, [True] * len(trace.jaxpr.outvars), instantiate=True)
    return _count(kept)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(v.aval, "shape", ()) for v in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
    if name == "conv_general_dilated":
        out_features = shapes[1][parameters["dimension_numbers"].rhs_spec[0]]
        zeros = math.prod(parameters["lhs_dilation"])  # the gradient of a stride: most of the input is holes
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[1]) // out_features // zeros
    if name.startswith("dot_product_attention_"):  # cuDNN's: two products forward; five backward, one of them again
        (b, queries, heads, width), tokens = shapes[0], shapes[1][1]
        return (2 if "fwd" in name else 5) * 2 * b * heads * queries * tokens * width
    inner = [_count(jaxpr) for jaxpr in _inner(parameters)]
    if name == "cond":
        return max(inner)
    if name == "while":
        return sum(inner)  # turns unknown; nothing here has matrix products in such a loop
    return sum(inner) * parameters.get("length", 1) if name == "scan" else sum(inner)


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one
