"""A small OpenAI-compatible server: answers validly by the schema in each request, or misbehaves as it is told to."""

import contextlib
import http.server
import json
import math
import re
import threading

CANARY = "zebrafinch"
MODEL = "some/model"
LEVELS = {"definite": 1, "most likely": 0.9, "likely": 0.8, "suggestive": 0.7}
LEVELS |= {"possible": 0.5, "cannot exclude": 0.3, "unlikely": 0.15, "absent": 0}


def reports(count):
    return [{"findings": f"{CANARY} case {i} of many. Second sentence.", "impression": ""} for i in range(count)]


def case_of(request):
    return int(re.search(r"case (\d+) of many", request["messages"][-1]["content"]).group(1))


def truth(case, names):
    """What the server says of a case: finding -> level; two findings of each case are mentioned."""
    levels = list(LEVELS)
    return {names[case % len(names)]: levels[case % 8], names[(case + 3) % len(names)]: levels[(case + 5) % 8]}


def valid(request):
    """The answer's text, built from the schema in the request alone."""
    schema = request["response_format"]["json_schema"]["schema"]
    names = schema["required"]
    absent, claim = schema["$defs"]["reading"]["anyOf"]
    said = truth(case_of(request), names)
    assert set(said.values()) <= set(claim["properties"]["certainty"]["enum"])
    sentence = claim["properties"]["sentence"]["maximum"]
    return json.dumps(
        {n: {"sentence": sentence, "certainty": said[n]} if n in said else absent["enum"][0] for n in names}
    )


def completion(text, finish="stop", logprobs=None):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [{**choice, "logprobs": logprobs}], "usage": {}}).encode()


def spelt(text, spread):
    """Log-probabilities of an answer: a level's first three letters, with the quote before them, are one token."""
    pieces = [p for p in re.split(r'("(?=certainty":)|"[a-z]{3}(?=[a-z ]*"\}))', text) if p]
    content = []
    for piece in pieces:
        level = next((n for n in LEVELS if piece == f'"{n[:3]}'), None)
        options = {f'"{n[:3]}': spread[n] for n in LEVELS} | {'"': 0.2, "{": 0.1} if level else {piece: 1.0}
        top = [{"token": t, "logprob": math.log(p) if p else -9999.0} for t, p in options.items()]
        content.append({"token": piece, "logprob": math.log(options[piece] or 1e-9), "top_logprobs": top})
    return {"content": [*content, {"token": "<|im_end|>", "logprob": 0.0, "top_logprobs": []}]}


class Stub(http.server.ThreadingHTTPServer):
    """Answers validly unless ``behave(handler, request, nth)`` answers itself and returns True (nth of this case)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behave=None, models=(MODEL,)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.models = behave or (lambda *_: False), models
        self.lock, self.gone = threading.Lock(), False
        self.seen, self.paths, self.headers, self.in_flight, self.most = [], [], [], 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def verify_request(self, request, client_address):
        return not self.gone

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def say(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.paths.append(self.path)
        self.say(json.dumps({"object": "list", "data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self):
        stub = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            nth = sum(case_of(other) == case_of(request) for other in stub.seen)
            stub.seen.append(request)
            stub.paths.append(self.path)
            stub.headers.append(dict(self.headers))
            stub.in_flight += 1
            stub.most = max(stub.most, stub.in_flight)
        try:
            answered = stub.behave(self, request, nth)
        finally:
            with stub.lock:  # before the answer, upon which the client may send its next request at once
                stub.in_flight -= 1
        if not answered:
            self.say(completion(valid(request)))


@contextlib.contextmanager
def serving(behave=None, **options):
    stub = Stub(behave, **options)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        thread.join()
        stub.server_close()
