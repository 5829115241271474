"""Families of Hugging Face vision models as data: what config.json means, and which stored tensor is which parameter.

A family is one entry of :data:`FAMILIES`. Its targets are paths in the encoder; "/weight" stands for "/kernel" or
"/scale", whichever the encoder has there, and "gate+up" for a tensor that holds both, one after the other.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from repgls_jax.models import vit

# Fields of config.json that have to be whole numbers, with the largest that is taken for meant: sizes are checked
# before anything is allocated for them.
BOUNDS = {
    "hidden_size": 8192,
    "num_hidden_layers": 128,
    "num_attention_heads": 128,
    "intermediate_size": 65536,
    "mlp_ratio": 16,
    "num_register_tokens": 64,
    "patch_size": 64,
    "image_size": 4096,
    "num_channels": 16,
}
SIDE = 256  # patches a side, likewise
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "silu": "silu"}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
      defaults: the fields of config.json that matter, with the values that they have when left out.
      only: further fields, with the one value that is supported, which is also the default.
      tensors: regular expression for a tensor's name -> path in the encoder, with groups as {0}, {1}.
      ignored: regular expressions for names of tensors that are not of the encoder.
      architecture: fields of the architecture that the family fixes.
      antialias: whether position embeddings are smoothed when resized, see :mod:`repgls_jax.models.positions`.
    """

    defaults: Mapping[str, Any]
    only: Mapping[str, Any]
    tensors: Mapping[str, str]
    ignored: tuple[str, ...]
    architecture: Mapping[str, Any]
    antialias: bool = False


_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
}

_VIT_EMBEDDINGS = {
    r"PREFIXembeddings\.cls_token": "class_token",
    r"PREFIXembeddings\.position_embeddings": "position",
    r"PREFIXembeddings\.patch_embeddings\.projection\.(weight|bias)": "embedding/{0}",
    r"PREFIXlayernorm\.(weight|bias)": "norm/{0}",
}
_VIT_ATTENTION = {
    r"PREFIXencoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)": (
        "block_{0}/attention/{1}/{2}"
    ),
    r"PREFIXencoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)": "block_{0}/attention/out/{1}",
}
_VIT = {
    **_VIT_EMBEDDINGS,
    **_VIT_ATTENTION,
    r"PREFIXencoder\.layer\.(\d+)\.layernorm_before\.(weight|bias)": "block_{0}/attention_norm/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.layernorm_after\.(weight|bias)": "block_{0}/mlp_norm/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)": "block_{0}/mlp/up/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.output\.dense\.(weight|bias)": "block_{0}/mlp/down/{1}",
}
_DINOV2 = {
    **_VIT_EMBEDDINGS,
    **_VIT_ATTENTION,
    r"PREFIXembeddings\.register_tokens": "registers",
    r"PREFIXencoder\.layer\.(\d+)\.norm1\.(weight|bias)": "block_{0}/attention_norm/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.norm2\.(weight|bias)": "block_{0}/mlp_norm/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.layer_scale1\.lambda1": "block_{0}/attention_scale",
    r"PREFIXencoder\.layer\.(\d+)\.layer_scale2\.lambda1": "block_{0}/mlp_scale",
    r"PREFIXencoder\.layer\.(\d+)\.mlp\.fc1\.(weight|bias)": "block_{0}/mlp/up/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.mlp\.fc2\.(weight|bias)": "block_{0}/mlp/down/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.mlp\.weights_in\.(weight|bias)": "block_{0}/mlp/gate+up/{1}",
    r"PREFIXencoder\.layer\.(\d+)\.mlp\.weights_out\.(weight|bias)": "block_{0}/mlp/down/{1}",
}
_DINOV3 = {
    r"PREFIXembeddings\.cls_token": "class_token",
    r"PREFIXembeddings\.register_tokens": "registers",
    r"PREFIXembeddings\.patch_embeddings\.(weight|bias)": "embedding/{0}",
    r"PREFIXlayer\.(\d+)\.norm1\.(weight|bias)": "block_{0}/attention_norm/{1}",
    r"PREFIXlayer\.(\d+)\.norm2\.(weight|bias)": "block_{0}/mlp_norm/{1}",
    r"PREFIXlayer\.(\d+)\.attention\.q_proj\.(weight|bias)": "block_{0}/attention/query/{1}",
    r"PREFIXlayer\.(\d+)\.attention\.k_proj\.(weight|bias)": "block_{0}/attention/key/{1}",
    r"PREFIXlayer\.(\d+)\.attention\.v_proj\.(weight|bias)": "block_{0}/attention/value/{1}",
    r"PREFIXlayer\.(\d+)\.attention\.o_proj\.(weight|bias)": "block_{0}/attention/out/{1}",
    r"PREFIXlayer\.(\d+)\.layer_scale1\.lambda1": "block_{0}/attention_scale",
    r"PREFIXlayer\.(\d+)\.layer_scale2\.lambda1": "block_{0}/mlp_scale",
    r"PREFIXlayer\.(\d+)\.mlp\.(gate|up|down)_proj\.(weight|bias)": "block_{0}/mlp/{1}/{2}",
    r"PREFIXnorm\.(weight|bias)": "norm/{0}",
}
_SIGLIP = {
    r"PREFIXembeddings\.patch_embedding\.(weight|bias)": "embedding/{0}",
    r"PREFIXembeddings\.position_embedding\.weight": "position",
    r"PREFIXencoder\.layers\.(\d+)\.layer_norm1\.(weight|bias)": "block_{0}/attention_norm/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.layer_norm2\.(weight|bias)": "block_{0}/mlp_norm/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)": "block_{0}/attention/query/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.self_attn\.k_proj\.(weight|bias)": "block_{0}/attention/key/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.self_attn\.v_proj\.(weight|bias)": "block_{0}/attention/value/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)": "block_{0}/attention/out/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.mlp\.fc1\.(weight|bias)": "block_{0}/mlp/up/{1}",
    r"PREFIXencoder\.layers\.(\d+)\.mlp\.fc2\.(weight|bias)": "block_{0}/mlp/down/{1}",
    r"PREFIXpost_layernorm\.(weight|bias)": "norm/{0}",
}
_HEADS = (r"(pooler|classifier)\..*",)
_CLASS = {"class_token": True}


def _under(prefix: str, names: Any) -> Any:
    """Patterns whose PREFIX may be there, as in models with a head, or not: ``names`` is a mapping or a tuple."""
    if isinstance(names, Mapping):
        return {pattern.replace("PREFIX", f"(?:{prefix}\\.)?"): path for pattern, path in names.items()}
    return tuple(pattern.replace("PREFIX", f"(?:{prefix}\\.)?") for pattern in names)


_SIGLIP_FAMILY = Family(
    defaults=_BASE | {"hidden_act": "gelu_pytorch_tanh", "intermediate_size": 3072, "layer_norm_eps": 1e-6},
    only={},
    tensors=_under("vision_model", _SIGLIP),
    # The other tower, and the attention that pools this one's tokens.
    ignored=(r"text_model\..*", r"(vision_model\.)?head\..*", r"logit_(scale|bias)", r".*\.position_ids", *_HEADS),
    architecture={},
)

# By config.json's "model_type". RAD-DINO is a dinov2.
FAMILIES: dict[str, Family] = {
    "vit": Family(
        defaults=_BASE | {"intermediate_size": 3072, "layer_norm_eps": 1e-12, "qkv_bias": True},
        only={},
        tensors=_under("vit", _VIT),
        ignored=(r"(vit\.)?pooler\..*", r"(vit\.)?embeddings\.mask_token", r"decoder\..*", *_HEADS),
        architecture=_CLASS,
    ),
    # The positions are sines and cosines that its pre-training never moved. They are taken as stored, and learn when
    # fine-tuned, as in the authors' own fine-tuning.
    "vit_mae": Family(
        defaults=_BASE | {"intermediate_size": 3072, "layer_norm_eps": 1e-12, "qkv_bias": True},
        only={},
        tensors=_under("vit", _VIT),
        ignored=(r"decoder\..*", *_HEADS),
        architecture=_CLASS,
    ),
    "dinov2": Family(
        defaults=_BASE
        | {"patch_size": 14, "mlp_ratio": 4, "layer_norm_eps": 1e-6, "layerscale_value": 1.0}
        | {"qkv_bias": True, "use_swiglu_ffn": False},
        only={},
        tensors=_under("dinov2", _DINOV2),
        ignored=_under("dinov2", (r"PREFIXembeddings\.mask_token",)) + _HEADS,
        architecture=_CLASS,
    ),
    "dinov2_with_registers": Family(
        defaults=_BASE
        | {"mlp_ratio": 4, "layer_norm_eps": 1e-6, "layerscale_value": 1.0, "qkv_bias": True}
        | {"use_swiglu_ffn": False, "num_register_tokens": 4},
        only={},
        tensors=_under("dinov2_with_registers", _DINOV2),
        ignored=_under("dinov2_with_registers", (r"PREFIXembeddings\.mask_token",)) + _HEADS,
        architecture=_CLASS,
        antialias=True,
    ),
    "dinov3_vit": Family(
        defaults=_BASE
        | {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-5}
        | {"layerscale_value": 1.0, "use_gated_mlp": False, "num_register_tokens": 0, "rope_theta": 100.0}
        | {"query_bias": True, "key_bias": False, "value_bias": True},
        only={"proj_bias": True, "mlp_bias": True},
        tensors=_under("(?:dinov3_vit|model)", _DINOV3),
        ignored=_under("(?:dinov3_vit|model)", (r"PREFIXembeddings\.mask_token", r"PREFIXrope_embeddings\.inv_freq"))
        + _HEADS,
        architecture=_CLASS | {"position": "rope"},
    ),
    "siglip_vision_model": _SIGLIP_FAMILY,
    "siglip": _SIGLIP_FAMILY,  # image and text towers; SigLIP 2 of fixed resolution too says that it is one
}


def read(config: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family of a config.json, and the fields that matter with their defaults filled in.

    Raises:
      ValueError: the model is of no known family, or a field has a value that is not supported; names all of them.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type is {name!r}; expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    given = config.get("vision_config", {}) if name == "siglip" else config
    if not isinstance(given, Mapping):
        raise ValueError("vision_config is not an object")
    fields = {k: given.get(k, v) for k, v in {**family.defaults, **family.only}.items()}
    # Older configs write one number for both sides as a pair.
    for k in ("image_size", "patch_size"):
        if isinstance(fields[k], list) and len(set(map(repr, fields[k]))) == 1:
            fields[k] = fields[k][0]
    problems = []
    for k, value in fields.items():
        least = 0 if k == "num_register_tokens" else 1
        if k in BOUNDS and (type(value) is not int or not least <= value <= BOUNDS[k]):
            problems.append(f"{k} is {value!r}; expected a whole number from {least} to {BOUNDS[k]}")
        elif isinstance(family.defaults.get(k), bool) and not isinstance(value, bool):
            problems.append(f"{k} is {value!r}; expected true or false")
        elif isinstance(family.defaults.get(k), float) and (type(value) not in (int, float) or not 0 < value < 1e6):
            problems.append(f"{k} is {value!r}; expected a number above 0")
        elif k in family.only and value != family.only[k]:
            problems.append(f"{k} is {value!r}; only {family.only[k]!r} is supported")
        elif k == "hidden_act" and value not in ACTIVATIONS:
            problems.append(f"{k} is {value!r}; expected one of {', '.join(ACTIVATIONS)}")
    if not problems:
        side, rest = divmod(fields["image_size"], fields["patch_size"])
        if rest or side > SIDE:
            problems.append(
                f"image_size is {fields['image_size']} and patch_size {fields['patch_size']}; "
                f"expected a multiple of it, of at most {SIDE} patches"
            )
    if problems:
        raise ValueError("; ".join(problems))
    return family, fields


def architecture(family: Family, fields: Mapping[str, Any]) -> vit.Architecture:
    """The encoder's architecture, from the fields that :func:`read` returns; raises ValueError if it has none."""
    width = fields["hidden_size"]
    mlp = fields["intermediate_size"] if "intermediate_size" in fields else width * fields["mlp_ratio"]
    activation = ACTIVATIONS[fields["hidden_act"]]
    gated = bool(fields.get("use_gated_mlp") or fields.get("use_swiglu_ffn"))
    if fields.get("use_swiglu_ffn"):
        # DINOv2 keeps two thirds, rounded up to a multiple of 8, and does not look at hidden_act.
        mlp, activation = (int(mlp * 2 / 3) + 7) // 8 * 8, "silu"
    if "query_bias" in fields:
        bias = "".join(letter[0] for letter in ("query", "key", "value") if fields[f"{letter}_bias"])
    else:
        bias = "qkv" if fields.get("qkv_bias", True) else ""
    return vit.Architecture(
        width=width,
        depth=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        mlp=mlp,
        patch=fields["patch_size"],
        registers=fields.get("num_register_tokens", 0),
        rope_theta=fields.get("rope_theta", 100.0),
        activation=activation,
        gated=gated,
        layer_scale=fields.get("layerscale_value", 0.0),
        bias=bias,
        norm_epsilon=fields["layer_norm_eps"],
        **family.architecture,
    )


def target(family: Family, name: str) -> str | None:
    """Path in the encoder of the tensor ``name``; "" if it is not of the encoder, None if it is unknown."""
    for pattern, path in family.tensors.items():
        match = re.fullmatch(pattern, name)
        if match:
            return path.format(*match.groups())
    return "" if any(re.fullmatch(pattern, name) for pattern in family.ignored) else None
