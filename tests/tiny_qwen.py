"""A tiny random Qwen3, as files that the local language model's tests load; needs the extra "labels"."""

import pathlib

import pytest

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import prompt

_REASON = "the qwen backend needs the extra 'labels'"
torch = pytest.importorskip("torch", reason=_REASON)
transformers = pytest.importorskip("transformers", reason=_REASON)
tokenizers = pytest.importorskip("tokenizers", reason=_REASON)
pytest.importorskip("llguidance", reason=_REASON)

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "[UNUSED]", "%%"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def save(path: pathlib.Path) -> pathlib.Path:
    """Saves the model and a byte-level tokeniser trained on the prompt in ``path``; returns it."""
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.normalizer = tokenizers.normalizers.NFC()
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([m["content"] for m in prompt.opening(findings_lib.UNION)], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.add_tokens([tokenizers.AddedToken(word, special=word.startswith("<|")) for word in CONTROL])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(2)
    torch.set_num_threads(1)  # so small a model is slower on more
    config = transformers.Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=1_024, max_position_embeddings=16_384, tie_word_embeddings=True, initializer_range=0.4,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    return path
