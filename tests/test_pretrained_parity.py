"""Pre-trained encoders against the torch models they come from, layer by layer; needs torch and transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from repgls_jax.models import families, luvit, positions, pretrained, vit  # noqa: E402

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 40, "patch_size": 8}
MLP = {"intermediate_size": 64}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = {"decoder_" + field: value for field, value in SMALL.items()}
TEXT = SMALL | {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "projection_size": 32}
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Name -> (class of the model, class of its config, its settings, attribute that leads to the encoder, other sizes).
MODELS = {
    "vit": ("ViTModel", "ViTConfig", SHAPE | MLP, "", (24,)),
    "vit_without_bias": ("ViTModel", "ViTConfig", SHAPE | MLP | {"qkv_bias": False}, "", ()),
    "vit_classifier": ("ViTForImageClassification", "ViTConfig", SHAPE | MLP, "vit", ()),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", SHAPE | MLP | {"mask_ratio": 0.0}, "", (24,)),
    "vit_mae_decoder": ("ViTMAEForPreTraining", "ViTMAEConfig", SHAPE | MLP | DECODER | {"mask_ratio": 0.0}, "vit", ()),
    "dinov2": ("Dinov2Model", "Dinov2Config", SHAPE | {"mlp_ratio": 2}, "", (24,)),
    "dinov2_swiglu": ("Dinov2Model", "Dinov2Config", SHAPE | {"use_swiglu_ffn": True}, "", ()),
    "dinov2_classifier": ("Dinov2ForImageClassification", "Dinov2Config", SHAPE | {"mlp_ratio": 2}, "dinov2", ()),
    "dinov2_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        SHAPE | {"mlp_ratio": 2},
        "",
        (24,),
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", SHAPE | MLP | {"num_register_tokens": 4}, "", (24,)),
    "dinov3_gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        SHAPE | MLP | {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True},
        "",
        (),
    ),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", SHAPE | MLP, "", (24,)),
    "siglip": ("SiglipModel", "SiglipConfig", {"vision_config": SHAPE | MLP, "text_config": TEXT}, "vision_model", ()),
}


def twin(name, folder):
    """A model with random weights, none of them zero or one, saved to ``folder``; returns its encoder."""
    model_class, config_class, settings, inside, _ = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            # Key biases included, which softmax does not feel unless they are mapped to another place.
            noise = torch.randn_like(value) * (0.3 if value.ndim == 1 else 0.1)
            value.copy_(value + noise if "norm" in key or "lambda" in key else noise)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": DEVIATION}))
    return getattr(model, inside) if inside else model


def torch_features(model, images):
    """Tokens after every block and after the last norm, of uint8 films [b, h, w, 1] normalised as the family does."""
    kept = []
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    hooks = [b.register_forward_hook(lambda _m, _i, out: kept.append(out)) for b in blocks]
    pixels = np.repeat(images.transpose(0, 3, 1, 2), 3, axis=1) / 255
    pixels = (pixels - np.reshape(MEAN, (1, 3, 1, 1))) / np.reshape(DEVIATION, (1, 3, 1, 1))
    options = {} if "dino" in model.config.model_type else {"interpolate_pos_encoding": True}
    if model.config.model_type == "vit_mae":
        # Patches are shuffled by the order of the noise even if none is masked.
        count = (images.shape[1] // 8) ** 2
        options["noise"] = torch.arange(count).repeat(len(images), 1).float()
    with torch.no_grad():
        out = model(torch.tensor(pixels, dtype=torch.float32), **options)
    for hook in hooks:
        hook.remove()
    kept = [k[0] if isinstance(k, tuple) else k for k in kept]
    return [k.numpy() for k in (*kept, out.last_hidden_state)]


def our_features(backbone, images):
    encoder = vit.VisionTransformer(backbone.architecture)
    variables = {"params": pretrained.fit(backbone, images.shape[1])}

    def apply(variables, images):
        films = luvit.normalize(images)
        return encoder.apply(variables, films, capture_intermediates=lambda m, _: isinstance(m, vit.Block))

    # Most of the time would go into optimising code that runs once.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    out, state = jax.jit(apply, compiler_options=options)(variables, images)
    blocks = [state["intermediates"][f"block_{i}"]["__call__"][0] for i in range(backbone.architecture.depth)]
    return [np.asarray(k) for k in (*blocks, out)]


@pytest.mark.parametrize("name", MODELS)
def test_features_layer_by_layer(name, tmp_path):
    model = twin(name, tmp_path)
    backbone = pretrained.load(tmp_path)
    for side in (40, *MODELS[name][4]):
        images = np.random.default_rng(side).integers(0, 256, (2, side, side, 1), dtype=np.uint8)
        theirs, ours = torch_features(model, images), our_features(backbone, images)
        assert len(ours) == len(theirs) == 3
        for layer, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4, err_msg=f"layer {layer} at {side} pixels")


def test_every_family_has_a_twin(tmp_path):
    found = set()
    for name in MODELS:
        config = getattr(transformers, MODELS[name][1])(**MODELS[name][2])
        found.add(config.model_type)
    assert found == set(families.FAMILIES)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_defaults_are_those_of_transformers(name):
    family = families.FAMILIES[name]
    config = transformers.AutoConfig.for_model(name)
    config = config.vision_config if name == "siglip" else config
    defaults = {**family.defaults, **family.only}
    assert {field: getattr(config, field) for field in defaults} == defaults


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("side", [3, 5, 7, 16, 37])
def test_positions_are_resized_as_torch_does(side, antialias):
    position = np.random.default_rng(0).normal(size=(1, 49, 6)).astype(np.float32)
    grid = torch.tensor(position).reshape(1, 7, 7, 6).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias
    )
    theirs = theirs.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy()
    np.testing.assert_allclose(positions.resize(position, side, antialias), theirs, rtol=0, atol=1e-5)


def test_scanned_blocks_see_the_same_features(tmp_path):
    twin("dinov2_registers", tmp_path)
    backbone = pretrained.load(tmp_path)
    images = luvit.normalize(jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 24, 24, 1), dtype=np.uint8)))
    outputs = []
    for scan in (False, True):
        encoder = vit.VisionTransformer(backbone.architecture, scan=scan)
        outputs.append(jax.jit(encoder.apply)({"params": pretrained.fit(backbone, 24, scan)}, images))
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5)
