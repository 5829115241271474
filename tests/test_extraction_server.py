"""The server backend against a small local server: every report once, in order, whatever the server does."""

import csv
import itertools
import json
import logging
import math
import pickle
import re
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_server import CANARY, LEVELS, MODEL, case_of, completion, reports, serving, spelt, truth, valid

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.extraction import endpoint, prompt, run, server
from repgls_jax.extraction.backends import Fault


def backend(stub, vocabulary=findings_lib.UNION, **options):
    return server.ServerBackend(vocabulary, server.ServerSettings(stub.url, MODEL, **options), back_off=0.001)


def check(results, vocabulary=findings_lib.UNION, faults=()):
    """Every report has its own evidence, in order; those in ``faults`` have a Fault."""
    names = [f for f in vocabulary.findings if f != findings_lib.NO_FINDING]
    for case, result in enumerate(results):
        if case in faults:
            assert isinstance(result, Fault), case
            assert CANARY not in result.reason and "\n" not in result.reason
            continue
        found = {e.finding: e for e in result if e.finding != findings_lib.NO_FINDING}
        said = truth(case, names)
        assert {name: e.p for name, e in found.items()} == {name: LEVELS[level] for name, level in said.items()}
        text = reports(case + 1)[case]["findings"]
        assert {text[e.start : e.end] for e in found.values()} == {"Second sentence."}
        assert {name: e.cue for name, e in found.items()} == {name: f"level:{level}" for name, level in said.items()}


@pytest.mark.parametrize("vocabulary", findings_lib.VOCABULARIES.values(), ids=lambda v: v.name)
def test_every_report_gets_its_own_evidence(vocabulary):
    with serving() as stub:
        reader = backend(stub, vocabulary)
        check(reader.read(reports(30)), vocabulary)
        assert reader.read([]) == []
    assert len(stub.seen) == 30
    assert stub.paths[0] == "/v1/models" and set(stub.paths[1:]) == {"/v1/chat/completions"}
    request = stub.seen[0]
    assert (request["model"], request["temperature"]) == (MODEL, 0)
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    assert request["response_format"]["json_schema"]["strict"] is True
    assert len(re.sub(r"(?<=[,:]) ", "", valid(request))) <= request["max_tokens"] < 3_000
    assert (reader.labeller, reader.prompt_hash) == ("server", prompt.prompt_hash(vocabulary))
    assert MODEL in reader.version and "stated" in reader.version


def test_reports_without_sentences_are_not_asked_about():
    with serving() as stub:
        empty, history = backend(stub).read([{"findings": ""}, {"report": "INDICATION: cough"}])
    assert (stub.seen, empty) == ([], [])
    assert [(e.finding, e.p) for e in history] == [(findings_lib.NO_FINDING, 1.0)]


@pytest.mark.parametrize(
    "text",
    [
        "\ud800 lone",
        "NUL \0 and \x1b[31m",
        "\u202e\u0627\u0644\u0631\u0626\u0629 \u80ba\u91ce",
        "word " * 200_000,
        '[9] {"}',
    ],
)
def test_hostile_text_is_sent_and_read(text):
    with serving() as stub:
        [result] = backend(stub, concurrency=1).read(
            [{"findings": f"{text} case 0 of many." if len(text) < 99 else f"case 0 of many. {text}"}]
        )
    assert isinstance(result, list) and len(stub.seen) == 1


def test_requests_run_at_once_and_never_more_than_allowed():
    everyone = threading.Barrier(4)

    def behave(handler, request, nth):
        everyone.wait(timeout=10)  # breaks, and fails the test, unless four requests are in flight together

    with serving(behave) as stub:
        check(backend(stub, concurrency=4).read(reports(24)))
    assert stub.most == 4 and not everyone.broken


def fail(status, **headers):
    return lambda handler, *_: handler.say(CANARY.encode(), status, **headers) or True


def hang_up(handler, *_):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def stop_in_the_middle(handler, request, nth):
    body = completion(valid(request))
    handler.say(body[:40], Content_Length=str(len(body)))
    return True


def garble(handler, *_):
    handler.wfile.write(b"\x00\xff zebrafinch nonsense\r\n\r\n")
    return True


def answer(body, **options):
    return lambda handler, *_: handler.say(completion(body, **options)) or True


def raw(body):
    return lambda handler, *_: handler.say(body) or True


LOST = {
    "500": fail(500),
    "503": fail(503, Retry_After="0"),
    "429": fail(429, Retry_After="soon"),
    "408": fail(408),
    "hangs up": hang_up,
    "stops in the middle": stop_in_the_middle,
    "speaks no HTTP": garble,
}
INVALID = {
    "not JSON": answer(f"{CANARY} is not JSON"),
    "text beside the JSON": lambda h, request, _: h.say(completion(valid(request) + CANARY)) or True,
    "empty object": answer("{}"),
    "wrong schema": answer(json.dumps({CANARY: 1})),
    "a list": answer("[1]"),
    "deep": answer("[" * 60_000),
    "no text": answer(None),
    "cut off": lambda h, request, _: h.say(completion(valid(request), finish="length")) or True,
    "no choices": raw(b'{"choices": []}'),
    "choices of a wrong type": raw(b'{"choices": {"a": 3}}'),
    "null": raw(b"null"),
    "deep body": raw(b"[" * 200_000),
    "body not JSON": raw(CANARY.encode()),
    "body not text": raw(b"\xff\xfe\x00"),
    "no body": raw(b""),
    "huge": raw(b"x" * (10 * 2**20)),
}


@pytest.mark.parametrize("behave", {**LOST, **INVALID}.values(), ids={**LOST, **INVALID}.keys())
def test_what_fails_once_is_asked_again(behave):
    with serving(lambda h, request, nth: case_of(request) % 3 == 0 and nth == 0 and behave(h, request, nth)) as stub:
        check(backend(stub).read(reports(6)))
    assert sorted(map(case_of, stub.seen)) == [0, 0, 1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("name", [*LOST, *INVALID])
def test_a_report_that_always_fails_is_set_aside_alone(name):
    behave = {**LOST, **INVALID}[name]
    with serving(lambda h, request, nth: case_of(request) == 2 and behave(h, request, nth)) as stub:
        reader = backend(stub, concurrency=3)
        check(reader.read(reports(5)), faults={2})
    asked = [request for request in stub.seen if case_of(request) == 2]
    assert len(asked) == (8 if name in LOST else 4) and len(stub.seen) == len(asked) + 4
    seeds = {request["seed"] for request in asked}
    assert seeds == ({0} if name in LOST else {0, 1, 2, 3})
    assert [r["temperature"] > 0 for r in asked] == [r["seed"] > 0 for r in asked]


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 405, 422])
def test_a_refusal_ends_the_run_and_says_why(status, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with serving() as elsewhere:
        with serving(fail(status, Location=elsewhere.url + "/chat/completions")) as stub:
            reader = backend(stub, concurrency=2)
            with pytest.raises(ValueError, match=f"{stub.url} answered HTTP {status}") as caught:
                reader.read(reports(200))
        assert len(stub.seen) < 200  # the rest is not sent
        assert elsewhere.paths == []
    assert CANARY not in "".join(map(str, (caught.getrepr(showlocals=False), caplog.text, *capfd.readouterr())))
    assert {401: endpoint.KEY, 404: "/v1", 400: "structured output", 307: "redirect"}.get(status, "") in str(
        caught.value
    )


def test_a_server_that_goes_ends_the_run_without_a_fault():
    def behave(handler, request, nth):
        handler.server.gone |= case_of(request) >= 8  # from then on nobody is answered
        return handler.server.gone and hang_up(handler)

    with serving(behave) as stub:
        reader = backend(stub, concurrency=2)
        with pytest.raises(ConnectionError, match=r"stopped answering .*the same command"):
            reader.read(reports(40))


@pytest.mark.parametrize("behave", [LOST["429"], INVALID["not JSON"]], ids=["429", "not JSON"])
def test_a_server_that_fails_every_report_ends_the_run(behave):
    with serving(behave) as stub:
        reader = backend(stub)
        assert [type(result) for result in reader.read(reports(20))] == [Fault] * 20
        with pytest.raises(ValueError, match="32 reports in a row") as caught:  # counted on from call to call
            reader.read(reports(100))
        assert CANARY not in str(caught.getrepr(showlocals=False))


def test_failures_between_answers_do_not_end_the_run():
    with serving(lambda h, request, nth: case_of(request) % 2 and answer("{}")(h)) as stub:
        check(backend(stub, concurrency=1).read(reports(80)), faults=range(1, 80, 2))


def test_an_interrupted_run_goes_on_and_tells_no_text(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(server.ServerBackend, "chunk", 10)
    rows = reports(45)
    source, output = tmp_path / "reports.csv", tmp_path / "evidence.parquet"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("study_id", "findings"), *((i, r["findings"]) for i, r in enumerate(rows))])
    lines = []

    def extract(stub):
        options = server.ServerSettings(stub.url, MODEL, concurrency=3)
        return run.extract(source, output, findings_lib.NIH, backend="server", log=lines.append, settings=options)

    refusing = serving(lambda h, request, nth: case_of(request) == 25 and fail(400)(h))
    with refusing as stub, pytest.raises(ValueError, match="HTTP 400"):
        extract(stub)
    assert not output.exists()
    with serving(lambda h, request, nth: case_of(request) == 33 and answer(CANARY)(h)) as stub:
        counts = extract(stub)
    assert {case_of(request) for request in stub.seen} == set(range(20, 45))  # the first two parts were finished
    assert (counts["reports"], counts["quarantined"], counts["rows"]) == (44, 1, 88)
    table = sidecars.read(output, sidecars.EVIDENCE, findings_lib.NIH).to_pylist()
    assert [int(row["study_id"]) for row in table] == [i for i in range(45) if i != 33 for _ in range(2)]
    for row in table:
        assert row["p"] == pytest.approx(LEVELS[truth(int(row["study_id"]), findings_lib.NIH.findings)[row["finding"]]])
        assert (row["labeller"], row["prompt_hash"]) == ("server", prompt.prompt_hash(findings_lib.NIH))
    quarantine = (tmp_path / "evidence.parquet.quarantine.csv").read_text()
    assert "33" in quarantine and "server: 4 answers were not valid" in quarantine
    assert CANARY not in "".join([quarantine, *lines, *capfd.readouterr()])


def test_a_run_that_ends_does_not_wait_for_requests_in_flight():
    release = threading.Event()

    def behave(handler, request, nth):
        if case_of(request) == 3:
            while handler.server.in_flight < 4:
                time.sleep(0.001)
            return fail(404)(handler)
        return not release.wait(60)

    with serving(behave) as stub:
        done = []

        def read():
            with pytest.raises(ValueError, match="404"):
                backend(stub, concurrency=4).read(reports(4))
            done.append(stub.in_flight)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(30)
        release.set()
    assert done and done[0] >= 3  # three were still being answered


def test_silence_is_a_lost_connection(monkeypatch):
    monkeypatch.setattr(endpoint, "_ANSWER", 0.1)
    release = threading.Event()
    with serving(lambda h, request, nth: case_of(request) == 1 and nth == 0 and release.wait(60)) as stub:
        check(backend(stub).read(reports(3)))
        release.set()
    assert sorted(map(case_of, stub.seen)) == [0, 1, 1, 2]


# Probabilities of the levels at the place where one is written; they sum to .5, the rest decides nothing.
SPREAD = dict(zip(LEVELS, (0.25, 0.05, 0.1, 0, 0.05, 0.03, 0, 0.02), strict=True))
EXPECTED = sum(p * LEVELS[level] for level, p in SPREAD.items()) / sum(SPREAD.values())


def test_p_from_tokens_is_the_expectation_over_the_levels():
    def behave(handler, request, nth):
        assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
        handler.say(completion(valid(request), logprobs=spelt(valid(request), SPREAD)))
        return True

    with serving(behave) as stub:
        reader = backend(stub, certainty="tokens")
        results = reader.read(reports(16))
    assert "tokens" in reader.version
    names = prompt.asked(findings_lib.UNION)
    for case, result in enumerate(results):
        found = {e.finding: e for e in result if e.finding != findings_lib.NO_FINDING}
        assert {name: e.cue[6:] for name, e in found.items()} == truth(case, names)
        assert [e.p for e in found.values()] == pytest.approx([EXPECTED] * 2, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_place_of_a_level_is_found_however_the_answer_is_cut_into_tokens(data):
    names = ("Edema", "Hernia", "Mass")
    said = dict(zip(names, data.draw(st.lists(st.sampled_from(list(LEVELS)), min_size=3, max_size=3)), strict=True))
    separators = data.draw(st.sampled_from([(",", ":"), (", ", ": "), (",\n  ", ":")]))
    answers = {name: {"sentence": 1, "certainty": level} for name, level in said.items()}
    text = json.dumps(answers, separators=separators)
    begins = {name: text.index(f'"{name}"') for name in names}
    places = {name: text.index(f'"{level}"', begins[name]) + 1 for name, level in said.items()}
    anywhere = data.draw(st.lists(st.integers(0, len(text)), max_size=40))
    tokens, want = [{"token": "<think>\n\n</think>\n\n", "logprob": 0.0, "top_logprobs": []}], {}
    for start, stop in itertools.pairwise(sorted({0, len(text), *begins.values(), *anywhere})):
        token = {"token": text[start:stop], "logprob": math.log(0.6), "top_logprobs": []}
        for name in (name for name in names if start <= places[name] < stop):
            beginning = text[start : places[name]]  # which the rival shares, and the last one does not
            rivals = {f"{beginning}u": 0.2, beginning: 0.1, f"{beginning}x": 0.05, "~likely": 0.05}
            token["top_logprobs"] = [{"token": t, "logprob": math.log(p)} for t, p in rivals.items() if t]
            want[name] = 0.15 if said[name] == "unlikely" else (0.6 * LEVELS[said[name]] + 0.2 * 0.15) / 0.8
        tokens.append(token)
    assert server.probabilities(text, tokens) == pytest.approx(want)


def test_log_probabilities_that_do_not_fit_are_refused():
    def tokens(**changes):
        content = spelt('{"Edema":{"sentence":1,"certainty":"likely"}}', SPREAD)["content"]
        return [{**token, **changes} for token in content]

    text = '{"Edema":{"sentence":1,"certainty":"likely"}}'
    assert server.probabilities(text, tokens()) == pytest.approx({"Edema": EXPECTED})
    bad = [
        [],
        tokens()[1:],
        tokens(top_logprobs=None),
        tokens(logprob="high", top_logprobs=[]),
        tokens(logprob=math.nan, top_logprobs=[]),
        tokens(logprob=5.0, top_logprobs=[]),
        tokens(logprob=1e9, top_logprobs=[]),
        tokens(logprob=-9999.0, top_logprobs=[]),
        tokens(top_logprobs=[{"token": 3, "logprob": 0.0}]),
        tokens(top_logprobs=[{"token": [], "logprob": 0.0}]),
        tokens(token=7),
        [None],
        ["x"],
    ]
    for case in bad:
        with pytest.raises(prompt.AnswerError):
            server.probabilities(text, case)


def test_a_server_without_log_probabilities_is_told_at_the_first_answer():
    with serving() as stub, pytest.raises(ValueError, match="--certainty=stated"):
        backend(stub, certainty="tokens", concurrency=1).read(reports(50))
    assert len(stub.seen) < 50


def test_the_model_must_be_served():
    refusal = r"does not serve the model 'some/model'; it lists 'first', 'second'"
    with serving(models=("first", "second")) as stub, pytest.raises(ValueError, match=refusal):
        backend(stub)
    with pytest.raises(ValueError, match=r"does not answer .*ConnectionRefusedError"):
        backend(stub)


def test_settings_are_checked_and_pickle():
    kept = server.ServerSettings("http://localhost:8000/v1", "m", concurrency=3)
    assert pickle.loads(pickle.dumps(kept)) == kept  # noqa: S301
    for wrong in ({"certainty": "high"}, {"concurrency": 0}, {"concurrency": 5_000}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            server.ServerSettings("http://localhost:8000/v1", "m", **wrong)
