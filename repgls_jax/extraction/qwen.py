"""Reads reports with a Qwen3 language model on this machine.

The model answers the questions of :mod:`repgls_jax.extraction.prompt`, held to their schema while it decodes, with
its thinking turned off. Weights are bfloat16 on a GPU and float32 on a CPU. torch, transformers and llguidance come
with the extra ``labels`` and are imported when a backend is made.
"""

import dataclasses
import hashlib
import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from repgls_jax import __version__
from repgls_jax import findings as findings_lib
from repgls_jax.extraction import prompt
from repgls_jax.extraction.backends import Fault
from repgls_jax.reports.resolve import Evidence

if TYPE_CHECKING:
    from repgls_jax.extraction import decode as decode_lib

CERTAINTIES = ("tokens", "stated")
_ROUNDS = 1_000  # of breaking up control tokens; "%%%%" needs one for each character
_PLACE = "REPORT-STANDS-HERE"  # marks the report's place in the rendered chat; the instructions do not hold it
_IDENTITY = (".json", ".jinja", ".safetensors", ".txt")  # types of the files that make a model what it is


@dataclasses.dataclass(frozen=True)
class QwenSettings:
    """Settings of the Qwen3 backend.

    Attributes:
      model: folder with config, tokeniser and safetensors weights, or a name on the Hugging Face hub.
      certainty: where p comes from: "tokens", the expectation over the probabilities that the model gives the levels,
        or "stated", the level that it writes.
      batch_size: reports that are decoded together; halved for good when the GPU's memory does not hold them.
    """

    needs_device: ClassVar[bool] = True  # each worker process gets a GPU of its own
    model: str
    certainty: str = "tokens"
    batch_size: int = 32


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A report on its way through the model: its place among the reports, what is asked, and as tokens."""

    place: int
    numbered: prompt.Numbered
    tokens: list[int] = dataclasses.field(repr=False)


class QwenBackend:
    """A language model as a backend (see :class:`repgls_jax.extraction.backends.Backend`).

    The same command gives the same answers. Batches of another size give the same on a CPU; in bfloat16 on a GPU sums
    may round differently in batches of another shape, and tip a choice that the model finds equally likely.

    Attributes:
      decoder: the model at work.
      batch_size: reports that are decoded together; see :class:`QwenSettings`.
    """

    labeller = "qwen"
    chunk = 256  # sorted by length, which keeps padding small; the same for every batch size, so that one can change

    def __init__(self, vocabulary: findings_lib.Vocabulary, settings: QwenSettings) -> None:
        """Loads the model, and computes what all prompts share.

        Raises:
          ValueError: a setting is out of range, the extra is not installed, or the model cannot be used.
        """
        if settings.certainty not in CERTAINTIES:
            raise ValueError(f"certainty is {settings.certainty!r}; expected one of {', '.join(CERTAINTIES)}")
        if settings.batch_size < 1:
            raise ValueError(f"batch_size is {settings.batch_size}; expected at least 1")
        try:
            from repgls_jax.extraction import decode as decode_lib
        except ImportError as error:
            raise ValueError(f"the qwen backend needs {error.name}: pip install 'repgls-jax[labels]'") from error
        self._vocabulary = vocabulary
        self._tokens_p = settings.certainty == "tokens"
        self.batch_size = settings.batch_size
        model, tokenizer = decode_lib.load(settings.model)
        precision = str(model.dtype).removeprefix("torch.")  # a run begun on a GPU is not continued on a CPU
        self.version = f"{revision(settings.model, model.config)}+{precision}.{settings.certainty}+{__version__}"
        self.prompt_hash = prompt.prompt_hash(vocabulary)
        self._words = Words(tokenizer)
        head, self._tail = self._words.frame(prompt.opening(vocabulary))
        self.decoder: decode_lib.Decoder = decode_lib.Decoder(model, tokenizer, head, vocabulary)
        self._out_of_memory = decode_lib.OutOfMemory

    def read(self, reports: Sequence[Mapping[str, str]]) -> list[list[Evidence] | Fault]:
        """Evidence of each report, or why there is none; a report without sentences is not shown to the model."""
        results: list[list[Evidence] | Fault] = [[] for _ in reports]
        waiting = []
        for place, report in enumerate(reports):
            with self.decoder.part("tokenise"):
                asked = self._ask(place, prompt.number(report))
            if isinstance(asked, _Asked):
                waiting.append(asked)
            else:
                results[place] = asked
        waiting.sort(key=lambda asked: len(asked.tokens))
        while waiting:
            batch = waiting[: self.batch_size]
            answers = self._answers(batch)
            if answers is None:
                continue  # the batch is smaller now
            del waiting[: len(batch)]
            for asked, answer in zip(batch, answers, strict=True):
                results[asked.place] = self._settle(asked, answer)
        return results

    def cuts(self, report: Mapping[str, str]) -> bool:
        """Whether the report is longer than what the model is shown of it."""
        return prompt.number(report).truncated

    def _ask(self, place: int, numbered: prompt.Numbered) -> "_Asked | list[Evidence] | Fault":
        if not numbered.sentences:
            return prompt.parse(prompt.answer({}, self._vocabulary), numbered, self._vocabulary)
        tokens = self._words.encode(prompt.lines(numbered))
        if tokens is None:
            return Fault("the report's text holds a control token of the model that could not be broken up")
        tokens += self._tail
        room = self.decoder.room - prompt.longest_answer(len(numbered.sentences), self._vocabulary)
        if len(tokens) > room:
            return Fault(f"the report has {len(tokens)} tokens; the model has room for {room}")
        return _Asked(place, numbered, tokens)

    def _answers(self, batch: list[_Asked]) -> "list[tuple[str, decode_lib.Masses]] | None":
        """The answers of a batch; None where memory did not hold it, and the batch size is halved."""
        try:
            return self.decoder.answers([a.tokens for a in batch], [len(a.numbered.sentences) for a in batch])
        except self._out_of_memory:
            if len(batch) == 1:
                raise ValueError("the GPU's memory does not hold one report; use a smaller model") from None
        self.batch_size = len(batch) // 2
        warnings.warn(f"GPU memory is full with {len(batch)} reports; going on with {self.batch_size}", stacklevel=2)
        return None

    def _settle(self, asked: _Asked, answer: "tuple[str, decode_lib.Masses]") -> list[Evidence] | Fault:
        """Evidence from an answer; one that does not parse is asked for once more, alone."""
        try:
            return self._parse(asked, answer)
        except prompt.AnswerError:
            again = self._answers([asked])
        try:
            return self._parse(asked, again[0] if again else answer)
        except prompt.AnswerError as error:
            return Fault(f"the model's answer cannot be used: {error}")

    def _parse(self, asked: _Asked, answer: "tuple[str, decode_lib.Masses]") -> list[Evidence]:
        with self.decoder.part("parse"):
            text, masses = answer
            if not self._tokens_p:
                return prompt.parse(text, asked.numbered, self._vocabulary)
            p = {finding: prompt.expected(masses.get(at, {})) for finding, at in prompt.levels_at(text).items()}
            return prompt.parse(text, asked.numbered, self._vocabulary, p)


class Words:
    """A tokeniser that keeps the text of reports apart from the control tokens of chats."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_vocab()
        self._control = frozenset(added.values())
        self._spelled = re.compile(
            "|".join(re.escape(word) for word in sorted(added, key=len, reverse=True)) or r"(?!)"
        )

    def frame(self, opening: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids before and after the user's last message, thinking turned off.

        Raises:
          ValueError: the model's chat template does not show the message as it is, once.
        """
        chat = [*opening, {"role": "user", "content": _PLACE}]
        try:
            text = self._tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except ValueError as error:
            raise ValueError("the model's tokeniser has no chat template; use an instruction-tuned model") from error
        parts = text.split(_PLACE)
        if len(parts) != 2:
            raise ValueError(f"the model's chat template shows a message {len(parts) - 1} times; expected once")
        head, tail = (self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
        return head, tail

    def encode(self, text: str) -> list[int] | None:
        """Token ids of a report's text: never one of the added tokens; None where that cannot be kept.

        Whatever spells an added token is broken up by a space; what is left of one may spell the next.
        """
        for _ in range(_ROUNDS):
            text, found = self._spelled.subn(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)
            if not found:
                break
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return None if self._control.intersection(tokens) else tokens


def revision(name: str, config: Any) -> str:
    """Name and identity of a model: the hub's commit, or a digest of every byte of the files of a folder.

    A folder's own path is left out: it says where a model lies, not which one it is.
    """
    folder = pathlib.Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None) or 'unknown'}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _IDENTITY and path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return f"{folder.resolve().name}@{digest.hexdigest()[:16]}"
