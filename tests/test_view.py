"""The page's server: what it answers, and what it refuses."""

import asyncio
import io
import itertools
import logging
import re
import tracemalloc

import looking
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from repgls_jax import findings
from repgls_jax.data import images, shards
from repgls_jax.saliency import scoring

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from repgls_jax.view import guard, server
from repgls_jax.view.desk import Desk, Reader

BASE = "http://localhost:8000"
LIMIT = 2**20


def reader(name, methods=("attention",), **options):
    network = looking.network(**options)
    explainer = scoring.Explainer.of(network.model, network.params, methods, batch_size=1)
    return Reader(name, network, explainer)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return looking.phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def app(build):
    return server.make(
        Desk([reader("first", ("grad_cam", "attention")), reader("second", vocabulary=findings.NIH, seed=1)], build),
        LIMIT,
    )


@pytest.fixture
def client(app):
    return TestClient(app, BASE)


def encoded(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


FILM = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)


def picture(answer):
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy).group(1)
    assert f'<script nonce="{nonce}">' in answer.text and "NONCE" not in answer.text
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"https?://|url\(|@import|srcdoc|innerHTML", answer.text)
    assert nonce not in client.get("/").text  # another one each time
    for name, value in guard.HEADERS.items():
        assert answer.headers[name] == value


def test_a_dropped_film_is_what_the_network_says_of_it(client, tmp_path):
    content = encoded(FILM)
    (tmp_path / "film.png").write_bytes(content)
    said = client.post("/film", content=content).json()
    for options, network in (({}, said["networks"][0]), ({"vocabulary": findings.NIH, "seed": 1}, said["networks"][1])):
        trained = looking.network(**options)
        film = images.read(tmp_path / "film.png", looking.SIDE, 10)[None, ..., None]
        probability, rate = trained.forward(film)
        np.testing.assert_allclose(network["probability"], probability[0], atol=1e-4)
        np.testing.assert_allclose(network["rate"], rate[0], atol=1e-4)
        assert network["findings"] == list(trained.vocabulary.findings)
    bare = picture(client.get(f"/overlay/{said['token']}/0/film.png?finding=Edema"))
    assert (bare[..., 0] == bare[..., 2]).all()
    tinted = picture(client.get(f"/overlay/{said['token']}/0/attention.png?finding=Edema"))
    assert tinted.shape == bare.shape and (tinted != bare).any()
    picture(client.get(f"/overlay/{said['token']}/1/attention.png?finding=Hernia"))
    for path in ("0/lime.png?finding=Edema", "0/film.png?finding=Hernia", "2/film.png?finding=Edema", "0/film.png"):
        assert client.get(f"/overlay/{said['token']}/{path}").status_code == 404
    assert client.get("/overlay/another/0/film.png?finding=Edema").status_code == 404
    assert client.post("/film", content=encoded(FILM, "JPEG")).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"hello", 415),
        (b"GIF89a" + bytes(500), 415),
        (b"PK\x03\x04" + bytes(500), 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 9, 415),
        (encoded(FILM)[:300], 422),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), 422),
        (bytes(128) + b"DICM" + bytes(500), 422),
        (encoded(FILM) + bytes(LIMIT), 413),
    ],
)
def test_what_is_no_film_is_refused(client, content, status):
    answer = client.post("/film", content=content)
    assert answer.status_code == status
    assert re.fullmatch(r"[^/]{10,200}", answer.json()["error"])  # a sentence, and no path


def test_a_film_that_claims_to_be_huge_is_refused(client):
    small = encoded(np.zeros((1, 1), np.uint8))
    bomb = small[:16] + (60_000).to_bytes(4, "big") * 2 + small[24:]
    answer = client.post("/film", content=bomb)
    assert answer.status_code == 422


def ask(app, path=b"/", method="GET", headers=(), parts=None):
    """One request, as raw as it comes: status, body, and how many parts were read."""
    sent, read = [], 0

    async def receive():
        nonlocal read
        read += 1
        body = next(parts, None) if parts is not None else None
        return {"type": "http.request", "body": body or b"", "more_body": body is not None}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path.decode("latin-1"), "raw_path": path, "query_string": b""}
    scope |= {"headers": [(b"host", b"localhost:8000"), *headers], "http_version": "1.1", "scheme": "http"}
    scope |= {"server": ("localhost", 8000), "client": ("127.0.0.1", 1), "root_path": "", "asgi": {"version": "3.0"}}
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body, read


def test_a_gigabyte_is_refused_by_its_header_unread(app):
    length = [(b"content-length", str(2**30).encode())]
    status, _, read = ask(app, b"/film", "POST", length, iter([b"x"] * 1024))
    assert (status, read) == (413, 0)
    assert ask(app, b"/film", "POST", [(b"content-length", b"-1")], iter([b"x"]))[0] == 413


def test_a_gigabyte_without_a_length_is_refused_as_it_comes(app):
    def gigabyte():
        yield encoded(FILM)
        for _ in range(2**14):
            yield bytes(2**16)

    tracemalloc.start()
    try:
        status, _, read = ask(app, b"/film", "POST", parts=gigabyte())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status == 413
    assert read < 25  # of 16,385: the limit is 1 MB
    assert peak < 8 * 2**20
    # Of what cannot be a film one part is enough.
    status, _, read = ask(app, b"/film", "POST", parts=(bytes(2**16) for _ in range(2**14)))
    assert (status, read) == (415, 1)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
def test_other_hosts_are_refused(app, host):
    answer = TestClient(app, BASE).get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "localhost" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000"])
def test_this_host_is_answered(app, host):
    assert TestClient(app, BASE).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"origin": BASE + "1"}],
)
def test_other_sites_are_refused(client, headers):
    assert client.post("/film", content=encoded(FILM), headers=headers).status_code == 403


def test_the_pages_own_request_is_answered(client):
    headers = {"origin": BASE, "sec-fetch-site": "same-origin"}
    assert client.post("/film", content=encoded(FILM), headers=headers).status_code == 200


ESCAPES = (
    "..",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//etc/passwd",
    "..\\..\\etc\\passwd",
    "/etc/passwd",
    "\x00",
    "..%00",
    "file:///etc/passwd",
    "1/../../x",
)
ADDRESSES = (
    "/{}",
    "/set/{}",
    "/set/test/{}",
    "/set/{}/0",
    "/set/{}/0.png",
    "/set/{}/0/report",
    "/overlay/{}/0/film.png",
    "/overlay/a/0/{}.png",
    "/static/{}",
)


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_path_leads_anywhere(app, address, escape):
    for path in {address.format(escape), address.format(re.sub("%2f", "/", escape).replace("%2e", "."))}:
        status, body, _ = ask(app, path.encode("latin-1"))
        assert status in (404, 405), path
        assert b"root:" not in body


def test_the_set_is_browsed_with_its_reports(client, build, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    about = client.get("/about").json()
    examples = shards.examples(build / "shards", "test")
    assert about["splits"]["test"] == len(examples["image_id"]) and about["reports"]
    listed = client.get("/set/test?finding=Support%20Devices").json()
    k = findings.CHEXPERT.index("Support Devices")
    assert listed["numbers"] == np.flatnonzero(examples["truth"][:, k]).tolist()
    assert client.get("/set/test?start=999999").json()["numbers"] == []
    assert client.get("/set/test?start=-5&finding=Flu").status_code == 404
    number = listed["numbers"][0]
    film = client.get(f"/set/test/{number}").json()
    assert "Support Devices" in film["about"]["present"] and film["report"]
    marked = picture(client.get(f"/overlay/{film['token']}/0/film.png?finding=Support%20Devices"))
    assert (marked[..., 0] != marked[..., 2]).any()  # the lesion's outline
    assert picture(client.get(f"/set/test/{number}.png")).shape[0] == 144
    answer = client.get(f"/set/test/{number}/report")
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"] and "<script" not in answer.text
    row = pq.read_table(
        build / "reports.parquet", filters=[("study_id", "==", examples["study_id"][number])]
    ).to_pylist()[0]
    text = re.sub(r"<[^>]+>", "", answer.text)
    said = [
        part for name in ("findings", "impression", "report") for part in re.findall(r"[A-Za-z]{5,}", row[name] or "")
    ]
    assert said and all(word in text for word in said)
    assert not any(
        sentence and sentence in str(film) for sentence in (row["findings"], row["impression"], row["report"])
    )
    # Nothing of it is said anywhere else.
    told = caplog.text + "".join(capfd.readouterr())
    assert not any(f"{a} {b}" in told for a, b in itertools.pairwise(said))
    assert client.get("/set/test/99999").status_code == client.get("/set/test/99999/report").status_code == 404


def test_a_network_for_other_films_says_so(build):
    desk = Desk([reader("first"), reader("larger", side=80)], build)
    said = desk.film("test", 0)["networks"]
    assert "findings" in said[0]
    assert "80" in said[1]["error"]
    with pytest.raises(ValueError, match="needs a network"):
        Desk([], build)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.com", ""])
def test_addresses_that_others_can_reach_are_refused(host):
    with pytest.raises(ValueError, match=r"ssh -L"):
        guard.require_loopback(host)


def test_loopback_addresses_are_known():
    assert [guard.require_loopback(h) for h in ("localhost", "127.0.0.1", "[::1]")] == ["127.0.0.1", "127.0.0.1", "::1"]
