"""Greedy decoding of answers under a JSON schema, many reports at once, with torch, transformers and llguidance.

All prompts open with the same instructions and examples. Their keys and values are computed once and held once: every
query attends to them and to its own row,

    softmax([q K_shared^T, q K_own^T]) [V_shared; V_own],

which is plain attention over the whole prompt (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099) without a copy of
the shared part per row. What the schema forces (names, braces, the rest of a word) is appended without asking the
model, so that a report costs one forward pass per decision instead of one per token.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import safetensors
import torch
import transformers

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import prompt

_LETTERS = [level[0] for level in prompt.SCALE]
# What stands before a level; a token may reach over its end into the level's first character.
_LEAD = b'"certainty":"'
_SCORES = 2**27  # attention scores held at a time
ATTENTION = "repgls_shared_prefix"  # attn_implementation of a model that a Decoder takes

# Character offset at which a level begins in an answer -> first letter of a level -> its probability.
Masses = dict[int, dict[str, float]]
OutOfMemory = torch.OutOfMemoryError
Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, [kv heads, tokens, head width]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    shared: Layers | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a shared prefix and the row's own tokens, called by the model for each layer.

    Args:
      module: the attention layer; its ``layer_idx`` picks from ``shared``.
      query: [b, heads, q, d].
      key, value: [b, kv heads, k, d], the row's own tokens.
      attention_mask: bool [b, 1, q, k], True where a query may look.
      scaling: factor on the scores.
      shared: keys and values of the prefix, seen by every query; None without one.
      unused: what other attention functions take; there is no dropout, as nothing is trained here.

    Returns:
      [b, q, heads, d], and None for the weights.
    """
    b, heads, total, d = query.shape
    groups = key.shape[1]
    keys, values = shared[module.layer_idx] if shared else (key.new_zeros(groups, 0, d),) * 2
    own_keys, own_values = key.transpose(0, 1), value.transpose(0, 1)  # [groups, b, k, d]
    rows = max(1, _SCORES // (b * heads * (keys.shape[1] + key.shape[2])))
    out = []
    for at in range(0, total, rows):
        block = query[:, :, at : at + rows] * scaling
        n = block.shape[2]
        # Heads that share a key are rows of one matrix: [groups, b, heads per group * n, d].
        flat = block.reshape(b, groups, heads // groups * n, d).transpose(0, 1)
        before = (flat.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, flat.shape[1:3])
        hidden = ~attention_mask[:, 0, at : at + rows].repeat(1, heads // groups, 1)
        own = (flat @ own_keys.transpose(2, 3)).masked_fill(hidden, torch.finfo(query.dtype).min)
        weights = torch.cat([before, own], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
        past, now = weights.split([keys.shape[1], key.shape[2]], -1)
        mixed = (past.flatten(1, 2) @ values).view_as(flat) + now @ own_values
        out.append(mixed.transpose(0, 1).reshape(b, heads, n, d))
    return torch.cat(out, 2).transpose(1, 2), None


transformers.AttentionInterface.register(ATTENTION, attend)


def load(name: str) -> tuple[Any, Any]:
    """A Qwen3 model and its tokeniser, from a folder or from the Hugging Face hub; safetensors only, no remote code.

    Raises:
      ValueError: there is no such model, it is of another kind, or its files are damaged or incomplete.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "qwen3" or set(config.layer_types) != {"full_attention"}:
            raise ValueError(f"model {name!r} is of the kind {config.model_type!r}; expected qwen3 with full attention")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            output_loading_info=True,
            config=config,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"model {name!r} cannot be loaded; give a folder with config.json, tokenizer.json and safetensors weights, "
            "or a name on the Hugging Face hub"
        ) from error
    model, info = loaded
    # transformers gives weights that are not there random values, and only warns.
    if info["missing_keys"]:
        raise ValueError(f"model {name!r} lacks {len(info['missing_keys'])} of its weights; get its files again")
    return model.to(device).eval(), tokenizer


@dataclasses.dataclass
class _Row:
    """One answer in the making."""

    matcher: llguidance.LLMatcher
    text: bytearray = dataclasses.field(default_factory=bytearray)
    masses: Masses = dataclasses.field(default_factory=dict)
    failed: bool = False

    @property
    def done(self) -> bool:
        return self.failed or self.matcher.is_stopped()

    @property
    def remainder(self) -> bytes | None:
        """What is left of the words before a level, b"" right before it; None when no level comes next."""
        for k in range(len(_LEAD), 1, -1):
            if self.text.endswith(_LEAD[:k]):
                return _LEAD[k:]
        return None


class Decoder:
    """A model, its tokeniser, and the shared part of the prompt.

    Attributes:
      tokenizer: from transformers; fast, as llguidance needs it.
      shared: tokens of the prompt that are computed once.
      part: context manager by name ("mask", "prefill", "decode") around the parts of the work, for a benchmark to time.
    """

    def __init__(self, model: Any, tokenizer: Any, prefix: Sequence[int], vocabulary: findings_lib.Vocabulary) -> None:
        """Computes the shared prefix.

        Args:
          model: causal language model loaded with :data:`ATTENTION`.
          tokenizer: its fast tokeniser.
          prefix: token ids that every prompt opens with.
          vocabulary: findings that are asked for.
        """
        self.tokenizer = tokenizer
        self.part: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext()
        self._model = model
        self._vocabulary = vocabulary
        # transformers 5.24 renamed the argument, and means to drop the old name.
        parameters = inspect.signature(type(model).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._size = model.config.vocab_size
        self._guide = llguidance.hf.from_tokenizer(tokenizer, n_vocab=self._size)
        self._bytes = [self._guide.decode_bytes([token]) for token in range(self._size)]
        self._matchers: dict[int, llguidance.LLMatcher] = {}
        self._letters: dict[bytes, torch.Tensor] = {}
        self._pool = llguidance.LLExecutor()
        self._prefix: Layers | None = None
        self.shared = 0
        cache = transformers.DynamicCache(config=model.config)
        self._forward([list(prefix)], self._nothing(1), cache)
        self._prefix = [(keys[0], values[0]) for keys, values, _ in cache]
        self.shared = len(prefix)

    @property
    def room(self) -> int:
        """Tokens that a report and its answer may take together."""
        return int(self._model.config.max_position_embeddings) - self.shared

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Sequence[int]], sentences: Sequence[int]) -> list[tuple[str, Masses]]:
        """One answer for each prompt.

        Args:
          prompts: token ids that follow the shared prefix, at least one each.
          sentences: how many numbered sentences each prompt has.

        Returns:
          For each prompt its answer and the probabilities of its levels. An answer ends early, and will not parse,
          only where the model gives no number that can be used (NaN).
        """
        rows = [_Row(self._matcher(n)) for n in sentences]
        new = [[*tokens, *self._force(row)] for tokens, row in zip(prompts, rows, strict=True)]
        cache = transformers.DynamicCache(config=self._model.config)
        valid, name = self._nothing(len(rows)), "prefill"
        while not all(row.done for row in rows):
            with self.part("mask"):
                allowed = self._allowed(rows)
            with self.part(name):
                logits, valid = self._forward(new, valid, cache)
                chosen = self._choose(rows, logits, allowed)
            name = "decode"
            with self.part("mask"):
                new = [[] if row.done else self._take(row, token) for row, token in zip(rows, chosen, strict=True)]
        return [(row.text.decode(), row.masses) for row in rows]

    def _nothing(self, rows: int) -> torch.Tensor:
        return torch.zeros((rows, 0), dtype=torch.bool, device=self._model.device)

    @torch.inference_mode()
    def _forward(self, new: list[list[int]], valid: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [b, v] after the last of the new tokens, and which columns of the cache hold tokens, bool [b, k].

        Rows get different numbers of new tokens; the shorter are padded on the left, and the padding is never seen.
        """
        width = max(map(len, new))
        ids = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in new])
        fresh = torch.tensor([[column >= width - len(tokens) for column in range(width)] for tokens in new])
        valid = torch.cat([valid, fresh.to(valid.device)], 1)
        column = torch.arange(valid.shape[1], device=valid.device)
        mask = valid[:, None, None, :] & (column <= column[-width:, None])
        positions = self.shared + (valid.cumsum(1)[:, -width:] - 1).clamp(min=0)
        out = self._model(
            input_ids=ids.to(valid.device),
            attention_mask=mask,
            position_ids=positions,
            **{self._cache_name: cache},
            use_cache=True,
            logits_to_keep=1,
            shared=self._prefix,
        )
        return out.logits[:, -1].float(), valid

    def _matcher(self, sentences: int) -> llguidance.LLMatcher:
        if sentences not in self._matchers:
            schema = prompt.schema(sentences, self._vocabulary)
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            self._matchers[sentences] = llguidance.LLMatcher(self._guide, grammar)
        return self._matchers[sentences].deep_copy()

    def _force(self, row: _Row) -> list[int]:
        """The tokens that can only follow, taken."""
        tokens = row.matcher.compute_ff_tokens()
        row.matcher.consume_tokens(tokens)
        row.text += b"".join(self._bytes[token] for token in tokens)
        return tokens

    def _take(self, row: _Row, token: int) -> list[int]:
        """The chosen token and what can only follow it; without one that fits the answer ends here."""
        row.failed = token < 0 or not row.matcher.consume_token(token)
        if row.failed:
            return []
        row.text += self._bytes[token]
        return [token, *self._force(row)]

    def _allowed(self, rows: list[_Row]) -> torch.Tensor:
        """Which tokens may come next, bool [b, v]; all of them in rows that are done."""
        bits = llguidance.numpy.allocate_token_bitmask(len(rows), self._size)
        live = [(row.matcher, i) for i, row in enumerate(rows) if not row.done]
        llguidance.numpy.fill_next_token_bitmask_par(self._pool, live, bits)
        packed = torch.from_numpy(bits.view(np.uint8)).to(self._model.device)
        places = torch.arange(8, dtype=torch.uint8, device=packed.device)
        return ((packed[:, :, None] >> places) & 1).bool().view(len(rows), -1)[:, : self._size]

    def _choose(self, rows: list[_Row], logits: torch.Tensor, allowed: torch.Tensor) -> list[int]:
        """The likeliest allowed token of each row, -1 where the model's numbers are no numbers.

        Where a level comes next, the mass of each letter is kept.
        """
        logits = logits.masked_fill(~allowed, -torch.inf)
        rests = {i: row.remainder for i, row in enumerate(rows) if not row.done}
        at = {i: rest for i, rest in rests.items() if rest is not None}
        if at:
            groups = torch.stack([self._groups(rest) for rest in at.values()])
            shares = logits[list(at)].softmax(1)
            masses = torch.stack([(shares * (groups == k)).sum(1) for k in range(len(_LETTERS))], 1).tolist()
            for (i, rest), mass in zip(at.items(), masses, strict=True):
                rows[i].masses[len(rows[i].text) + len(rest)] = dict(zip(_LETTERS, mass, strict=True))
        # The "largest" of NaN is the first: it would pass for an answer.
        return logits.argmax(1).masked_fill(logits.isnan().any(1), -1).tolist()

    def _groups(self, rest: bytes) -> torch.Tensor:
        """For each token, which letter it begins a level with after ``rest``, int8 [v]; -1 for none."""
        if rest not in self._letters:
            heads = {rest + letter.encode(): k for k, letter in enumerate(_LETTERS)}
            groups = [heads.get(token[: len(rest) + 1], -1) for token in self._bytes]
            self._letters[rest] = torch.tensor(groups, dtype=torch.int8, device=self._model.device)
        return self._letters[rest]
