"""Measures how fast the Qwen3 backend reads reports, and where the time goes.

  python data_prep/benchmark_qwen.py --batch_sizes=32,64,128        # random weights in the shape of Qwen3-4B
  python data_prep/benchmark_qwen.py --model=FOLDER                 # a model of one's own
  python data_prep/benchmark_qwen.py --tiny --batch_sizes=8 --reports=32   # a tiny shape, on a CPU

Without --model the weights are random and the tokeniser is trained in place, both written to a temporary folder and
loaded as any model is. Answers then mention more findings than a report does, which costs more forward passes.
"""

import collections
import contextlib
import json
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import tokenizers
import torch
import transformers
from absl import app, flags

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import prompt, qwen
from repgls_jax.extraction.backends import Fault

_MODEL = flags.DEFINE_string("model", None, "Folder or name of a Qwen3 model; random weights without it.")
_TINY = flags.DEFINE_bool("tiny", False, "Random weights in a tiny shape instead of Qwen3-4B's.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["32", "64", "128"], "Batch sizes to measure.")
_REPORTS = flags.DEFINE_integer("reports", 512, "Reports read for each batch size.", lower_bound=1)
_CERTAINTY = flags.DEFINE_enum("certainty", "tokens", qwen.CERTAINTIES, "See the backend's settings.")
_FINDINGS = flags.DEFINE_enum("findings", "union", sorted(findings_lib.VOCABULARIES), "Vocabulary of findings.")

_SHAPE: dict[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
_TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
_VOCABULARY, _TOKENS = 151_936, 151_643  # Qwen3's logits, and its tokens before the control tokens
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_SENTENCES = (
    "The heart is mildly enlarged, unchanged from the prior examination.",
    "Lung volumes are low with bibasilar atelectasis.",
    "No pneumothorax or large pleural effusion is identified.",
    "Patchy opacity in the right lower lobe may represent pneumonia in the appropriate clinical setting.",
    "Mediastinal and hilar contours are within normal limits.",
    "A left-sided dual lead pacemaker is in standard position.",
    "There is mild interstitial edema, improved since yesterday.",
    "Small bilateral effusions cannot be excluded.",
    "Healed fractures of the right sixth and seventh ribs are noted.",
    "The lungs are hyperinflated, compatible with emphysema.",
    "Endotracheal tube terminates four centimeters above the carina.",
    "A calcified granuloma is seen in the left upper lobe.",
    "Retrocardiac density is likely due to a hiatal hernia.",
)


def reports(count: int) -> list[dict[str, str]]:
    """Invented reports of five to ten sentences, about 450 characters."""
    draw = random.Random(0)
    return [
        {"findings": " ".join(draw.sample(_SENTENCES, draw.randint(4, 8))), "impression": draw.choice(_SENTENCES)}
        for _ in range(count)
    ]


def write_tokenizer(folder: pathlib.Path, texts: list[str]) -> None:
    """A byte-level tokeniser trained on ``texts``, filled up with invented words so that masks cost what they cost."""
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, tokenizers.trainers.BpeTrainer(vocab_size=2_000, show_progress=False, initial_alphabet=alphabet)
    )
    state = json.loads(raw.to_str())
    words, draw = state["model"]["vocab"], random.Random(0)
    while len(words) < _TOKENS:
        word = "".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 9)))
        words.setdefault(draw.choice(("", "\u0120")) + word, len(words))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>"
    )
    tokenizer.add_tokens([tokenizers.AddedToken(word, special=True) for word in _CONTROL])
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)


def write_model(folder: pathlib.Path, vocabulary: findings_lib.Vocabulary, tiny: bool) -> None:
    """A Qwen3 with random weights, as files."""
    write_tokenizer(folder, [m["content"] for m in prompt.opening(vocabulary)] + list(_SENTENCES))
    config = transformers.Qwen3Config(
        **(_TINY_SHAPE if tiny else _SHAPE),
        vocab_size=_VOCABULARY,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


class Parts:
    """Seconds and calls of each part of the work; the device is waited for, so that a part pays for its own kernels."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.calls: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times one stretch of the part ``name``."""
        _wait()
        began = time.perf_counter()
        yield
        _wait()
        self.seconds[name] += time.perf_counter() - began
        self.calls[name] += 1


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(backend: qwen.QwenBackend, batch_size: int, work: list[dict[str, str]]) -> str:
    """One line: reports a second at a batch size, and the share of time of each part."""
    backend.batch_size = batch_size
    backend.read(work[:batch_size])  # warm
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    backend.decoder.part = parts = Parts()
    began = time.perf_counter()
    found = backend.read(work)
    wall = time.perf_counter() - began
    faults = sum(isinstance(rows, Fault) for rows in found)
    rows = sum(len(rows) - 1 for rows in found if not isinstance(rows, Fault))
    seconds = dict(parts.seconds) | {"other": wall - sum(parts.seconds.values())}
    shares = ", ".join(f"{name} {value / wall:.1%}" for name, value in seconds.items())
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, " if torch.cuda.is_available() else ""
    passes = (parts.calls["prefill"] + parts.calls["decode"]) / max(parts.calls["prefill"], 1)
    return (
        f"batch {backend.batch_size}: {len(work) / wall:.2f} reports a second, {memory}{passes:.0f} forward passes a "
        f"batch, {rows / len(work):.1f} findings a report, {faults} faults; {shares}"
    )


def run(model: str) -> None:
    """Loads the model and prints a line for each batch size."""
    sizes = sorted(int(size) for size in _BATCH_SIZES.value)
    vocabulary = findings_lib.vocabulary(_FINDINGS.value)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    began = time.perf_counter()
    backend = qwen.QwenBackend(vocabulary, qwen.QwenSettings(model, _CERTAINTY.value, sizes[0]))
    print(f"{device}, torch {torch.__version__}, transformers {transformers.__version__}; {backend.version}")
    print(f"loaded in {time.perf_counter() - began:.1f} s; {backend.decoder.shared} tokens of the prompt are shared")
    work = reports(max(_REPORTS.value, sizes[-1]))
    for size in sizes:
        print(measure(backend, size, work), flush=True)


def main(argv: list[str]) -> None:
    """Makes a model where none is given, and measures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    try:
        if _MODEL.value:
            run(_MODEL.value)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_model(pathlib.Path(folder), findings_lib.vocabulary(_FINDINGS.value), _TINY.value)
            run(folder)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark_qwen: {error}")


if __name__ == "__main__":
    app.run(main)
