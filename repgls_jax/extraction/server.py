"""The server backend: a language model behind an OpenAI-compatible endpoint (vLLM, SGLang) reads the reports.

Every report is one request to ``chat/completions`` with the prompt and the answer's schema of
:mod:`repgls_jax.extraction.prompt`. What is wrong with one report is a Fault; what is wrong with the server or its
settings ends the run, which goes on from there when the same command is given again.
"""

import concurrent.futures
import dataclasses
import json
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from repgls_jax import __version__
from repgls_jax import findings as findings_lib
from repgls_jax.extraction import endpoint, prompt
from repgls_jax.extraction.backends import Fault
from repgls_jax.extraction.prompt import AnswerError
from repgls_jax.reports.resolve import Evidence

_ASKS = 4  # how often a report is asked about until an answer is valid
_IN_A_ROW = 32  # reports that fail one after another: then it is not the reports
_ALTERNATIVES = 20  # tokens whose probability is asked for at each place; what servers give at most


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Settings of the server backend.

    Attributes:
      endpoint: base address with the version, as http://localhost:8000/v1. Reports go to this machine or to a private
        address of one's own network (10/8, 172.16/12, 192.168/16, fc00::/7), and nowhere else.
      model: name under which the server lists the model.
      certainty: where p comes from: "stated", the level that the model writes, or "tokens", the probabilities of all
        levels at the place where it writes one; the server must then give log-probabilities.
      concurrency: requests in flight, 1 to 1024.
      send_reports_off_this_machine: also allow addresses that are neither this machine's nor private.
    """

    endpoint: str
    model: str
    certainty: str = "stated"
    concurrency: int = 16
    send_reports_off_this_machine: bool = False

    def __post_init__(self) -> None:
        if self.certainty not in ("stated", "tokens"):
            raise ValueError(f"certainty is {self.certainty!r}; expected 'stated' or 'tokens'")
        if not 1 <= self.concurrency <= 1024:
            raise ValueError(f"concurrency is {self.concurrency}; expected 1 to 1024")


class ServerBackend:
    """Asks a server; see :class:`repgls_jax.extraction.backends.Backend`.

    A server that needs an API key gets it from the environment variable :data:`repgls_jax.extraction.endpoint.KEY`.
    """

    labeller = "server"
    chunk = 512

    def __init__(self, vocabulary: findings_lib.Vocabulary, settings: ServerSettings, back_off: float = 1.0) -> None:
        """Connects, and checks that the model is served.

        Args:
          vocabulary: findings to give evidence for.
          settings: where the server is and what to ask it.
          back_off: seconds before a failed request is made again, at first.

        Raises:
          ValueError: the endpoint cannot be used or its address is not allowed, it does not answer, or it does not
            list the model.
        """
        self._vocabulary = vocabulary
        self._settings = settings
        self._endpoint = endpoint.Endpoint(settings.endpoint, settings.send_reports_off_this_machine, back_off)
        self._require_model()
        self.version = f"{__version__}+{settings.model}.{settings.certainty}"
        self.prompt_hash = prompt.prompt_hash(vocabulary)
        self._lock = threading.Lock()
        self._failed = 0  # reports since the last one that was read

    def read(self, reports: Sequence[Mapping[str, str]]) -> list[list[Evidence] | Fault]:
        """What each report says, in their order.

        Raises:
          ValueError: the server refuses the request, gives no log-probabilities though p is to come from them, or
            leaves 32 reports in a row without a valid answer.
          ConnectionError: the server has gone. After any error the backend makes no further request.
        """
        with concurrent.futures.ThreadPoolExecutor(self._settings.concurrency) as pool:
            futures = [pool.submit(self._read_one, report) for report in reports]
            try:
                done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            except BaseException:  # also Ctrl-C: nobody waits minutes for the requests in flight
                pool.shutdown(wait=False, cancel_futures=True)
                self._endpoint.abort()
                raise

    def cuts(self, report: Mapping[str, str]) -> bool:
        """Whether the report is longer than what the model is shown of it."""
        return prompt.number(report).truncated

    def _read_one(self, report: Mapping[str, str]) -> list[Evidence] | Fault:
        numbered = prompt.number(report)
        if not numbered.sentences:
            return prompt.parse(prompt.answer({}, self._vocabulary), numbered, self._vocabulary)
        request = self._request(numbered)
        reason = ""
        for attempt in range(_ASKS):
            # The same question at temperature 0 would mostly get the same answer.
            warmth = {"temperature": 0.3 if attempt else 0.0, "seed": attempt}
            try:
                body = self._endpoint.ask("chat/completions", {**request, **warmth})
                found = self._parse(body, numbered)
            except AnswerError as error:
                reason = f"{_ASKS} answers were not valid, at last: {error}"
            except endpoint.Exhausted as error:
                self._require_alive(error)
                reason = f"the server failed on it at every try, at last with {error}"
                break
            else:
                with self._lock:
                    self._failed = 0
                return found
        self._count_failure(reason)
        return Fault(f"server: {reason}")

    def _parse(self, body: bytes, numbered: prompt.Numbered) -> list[Evidence]:
        text, tokens = _content(body)
        if self._settings.certainty == "stated":
            return prompt.parse(text, numbered, self._vocabulary)
        if tokens is None:
            raise ValueError(f"{self._endpoint.url} gives no log-probabilities; use --certainty=stated")
        return prompt.parse(text, numbered, self._vocabulary, probabilities(text, tokens))

    def _count_failure(self, reason: str) -> None:
        with self._lock:
            self._failed += 1
            if self._failed >= _IN_A_ROW:
                raise ValueError(
                    f"{self._endpoint.url} left {_IN_A_ROW} reports in a row without a valid answer ({reason}); "
                    "check that the server supports structured output, and its log"
                )

    def _request(self, numbered: prompt.Numbered) -> dict[str, Any]:
        schema = prompt.schema(len(numbered.sentences), self._vocabulary)
        request = {
            "model": self._settings.model,
            "messages": prompt.messages(numbered, self._vocabulary),
            "max_tokens": prompt.longest_answer(len(numbered.sentences), self._vocabulary),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "findings", "strict": True, "schema": schema},
            },
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if self._settings.certainty == "tokens":
            request |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        return request

    def _require_model(self) -> None:
        url, model = self._endpoint.url, self._settings.model
        try:
            body = self._endpoint.ask("models", tries=3)
        except endpoint.Exhausted as error:
            raise ValueError(f"{url} does not answer ({error}); start the server, or correct --endpoint") from None
        try:
            names = [str(entry["id"]) for entry in json.loads(body)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{url}/models gives no list of models; expected an OpenAI-compatible server") from None
        if model not in names:
            shown = ", ".join(repr(name[:100]) for name in names[:20]) or "none"
            raise ValueError(f"{url} does not serve the model {model!r}; it lists {shown}")

    def _require_alive(self, reason: endpoint.Exhausted) -> None:
        """Tells a server that fails on one report from one that has gone."""
        try:
            self._endpoint.ask("models", tries=1)
        except (endpoint.Exhausted, AnswerError):
            raise ConnectionError(
                f"{self._endpoint.url} has stopped answering ({reason}); start the server and give the same command "
                "again: what is finished is kept"
            ) from None


def _content(body: bytes) -> tuple[str, list[Any] | None]:
    """The answer's text and its tokens with log-probabilities (None if the server gave none).

    Raises:
      AnswerError: the body is not a finished chat completion.
    """
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
        logprobs = choice.get("logprobs")
        tokens = logprobs["content"] if logprobs else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise AnswerError("the server's answer is not a chat completion") from None
    if cut:
        raise AnswerError("the answer was cut off at its longest length")
    if not isinstance(text, str):
        raise AnswerError("the answer is empty")
    if tokens is not None and not isinstance(tokens, list):
        raise AnswerError("the answer's log-probabilities are no list of tokens")
    return text, tokens


def probabilities(text: str, tokens: Sequence[Any]) -> dict[str, float]:
    """The p of each finding that an answer mentions, from the probabilities of the levels where one is written.

    The token that holds a level's first letter may begin earlier, with a quote or a colon. Its alternatives with the
    same beginning are grouped by the level that they go on with; the rest, which decide nothing, are left out.

    Args:
      text: the answer.
      tokens: as in the field ``logprobs.content`` of a chat completion: {"token", "logprob", "top_logprobs"}, the
        last a list of {"token", "logprob"}. Together they spell the answer, perhaps with something before or after
        it, such as an end token.

    Returns:
      Finding -> p in [0, 1].

    Raises:
      AnswerError: the tokens do not spell the answer, or no level has any probability.
    """
    try:
        pieces = [token["token"] for token in tokens]
        spelt = "".join(pieces)
        begin = spelt.rfind(text)
        if begin < 0:
            raise AnswerError("the tokens with log-probabilities do not spell the answer")
        found, at, first = {}, 0, 0  # token in hand, and the place in `spelt` at which it begins
        for finding, place in prompt.levels_at(text).items():
            while first + len(pieces[at]) <= begin + place:
                first += len(pieces[at])
                at += 1
            found[finding] = _level(spelt[first : begin + place], tokens[at])
    except (KeyError, TypeError, IndexError, OverflowError):
        raise AnswerError("the answer's log-probabilities do not have the form of a chat completion's") from None
    return found


def _level(before: str, token: Mapping[str, Any]) -> float:
    """Expected p at one token, whose first characters ``before`` come ahead of the level."""
    # The token taken may be missing among the alternatives; by text, each counts once.
    options = {option["token"]: option["logprob"] for option in (token, *token["top_logprobs"])}
    masses: dict[str, float] = {}
    for piece, logprob in options.items():
        rest = piece[len(before) :]
        for level in prompt.SCALE:
            written = f'{level}"'
            if piece.startswith(before) and rest and (written.startswith(rest) or rest.startswith(written)):
                mass = math.exp(logprob)
                if not mass < 1.001:  # also NaN
                    raise AnswerError("the answer's log-probabilities are above 0, or no numbers")
                masses[level[0]] = masses.get(level[0], 0.0) + mass
    return prompt.expected(masses)
