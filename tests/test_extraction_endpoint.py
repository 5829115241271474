"""The endpoint: where reports may go, and how a request is made, repeated and given up."""

import shutil
import socket
import ssl
import subprocess

import pytest
from stub_server import MODEL, reports, serving

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import addresses, endpoint, server


def read(url, count, **options):
    """Reads reports through the server at an address; all must be read."""
    settings = server.ServerSettings(url, MODEL, **options)
    results = server.ServerBackend(findings_lib.NIH, settings, back_off=0.001).read(reports(count))
    assert [type(result) for result in results] == [list] * count


def test_the_key_comes_from_the_environment_and_is_never_told(monkeypatch):
    with serving() as stub:
        monkeypatch.delenv(endpoint.KEY, raising=False)
        read(stub.url, 1)
        monkeypatch.setenv(endpoint.KEY, "s3cret")
        read(stub.url, 1)
        monkeypatch.setenv(endpoint.KEY, "s3cret\nX: y")
        with pytest.raises(ValueError, match=endpoint.KEY) as caught:
            read(stub.url, 1)
    assert "s3cret" not in str(caught.value)
    assert [headers.get("Authorization") for headers in stub.headers] == [None, "Bearer s3cret"]


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with serving() as stub, serving() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        read(stub.url, 3)
    assert (len(stub.seen), proxy.paths) == (3, [])


def test_the_pauses_grow_and_follow_the_server(monkeypatch):
    replies = iter([(503, {}), (503, {"Retry_After": "30"}), (429, {"Retry_After": "86400"}), (500, {})])

    def behave(handler, request, nth):
        status, headers = next(replies, (200, {}))
        handler.say(b"{}", status, **headers)
        return True

    pauses = []
    with serving(behave) as stub:
        client = endpoint.Endpoint(stub.url, anywhere=False, back_off=1.0)
        monkeypatch.setattr(client._stopping, "wait", pauses.append)
        assert client.ask("chat/completions", {"messages": [{"content": "case 0 of many"}]}) == b"{}"
    assert len(pauses) == 4
    assert 0.5 <= pauses[0] <= 1 and pauses[1] == 30 and pauses[2] == 60 and 4 <= pauses[3] <= 8


def test_a_server_that_keeps_one_waiting_is_not_asked_for_ever(monkeypatch):
    clock = iter(range(0, 10_000, 250))  # every look at the clock finds it 250 s later
    with serving(lambda handler, *_: handler.say(b"", 503) or True) as stub:
        client = endpoint.Endpoint(stub.url, anywhere=False, back_off=0.0)
        monkeypatch.setattr(endpoint.time, "monotonic", lambda: next(clock))
        with pytest.raises(endpoint.Exhausted, match="HTTP 503"):
            client.ask("chat/completions", {"messages": [{"content": "case 0 of many"}]})
        monkeypatch.undo()
    assert len(stub.seen) == 3


NEAR = """
127.0.0.1 127.8.9.1 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 ::1 fd00::1 fc00::1
::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:c0a8:1
"""
FAR = """
8.8.8.8 9.255.255.255 11.0.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 126.255.255.255 128.0.0.0
0.0.0.0 255.255.255.255 100.64.0.1 169.254.169.254 192.0.2.1 198.18.0.1 203.0.113.9 224.0.0.1 240.0.0.1
:: 2001:db8::1 fe80::1 fe80::1%1 ff02::1 2606:4700::1111 fbff::1 fe00::1
::ffff:8.8.8.8 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::a00:1 2002:a00:1::
"""


@pytest.mark.parametrize("address", NEAR.split())
def test_near_addresses(address):
    assert addresses.is_near(address)


@pytest.mark.parametrize("address", FAR.split())
def test_far_addresses(address):
    assert not addresses.is_near(address)


def names_lead_to(monkeypatch, *found):
    """Host names lead to these addresses, one list for each look-up."""
    calls = iter(found)

    def look_up(host, port, **_):
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in address], socket.SOCK_STREAM, 6, "", (address, port)) for address in next(calls)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_every_address_of_a_name_must_be_near(monkeypatch):
    names_lead_to(monkeypatch, ["10.0.0.1", "::1"], ["10.0.0.1", "8.8.8.8"], ["10.0.0.1", "8.8.8.8"])
    assert [address[0] for _, address in addresses.resolve("gpu", 80, anywhere=False)] == ["10.0.0.1", "::1"]
    with pytest.raises(ValueError, match=r"8\.8\.8\.8.*Data use.*third parties.*--send_reports_off_this_machine"):
        addresses.resolve("gpu", 80, anywhere=False)
    assert len(addresses.resolve("gpu", 80, anywhere=True)) == 2


def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(monkeypatch):
    with serving() as stub:
        port = stub.server_address[1]
        # The first address does not answer; a second look-up would fail the test by StopIteration.
        names_lead_to(monkeypatch, ["127.0.0.2", "127.0.0.1"])
        stub.url = f"http://gpu.example:{port}/v1/"
        read(stub.url, 4)
    assert {headers["Host"] for headers in stub.headers} == {f"gpu.example:{port}"}


WRONG = (
    "localhost:8000",
    "ftp://localhost/v1",
    "file:///etc",
    "http://",
    "http:///v1",
    "http://localhost:99999/",
    "http://[::1/v1",
    "http://localhost/v1?a=b",
    "http://localhost/v1#a",
    "http://localhost/a b",
    "http://local\thost/",
    "http://h\u00f6st/",
    "http://" + "a" * 70 + ".invalid/",
    "http://8.8.8.8/v1",
    "https://[::ffff:8.8.8.8]/v1",
    "http://134744072/v1",  # 8.8.8.8 as one number
)


@pytest.mark.parametrize("url", WRONG)
def test_endpoints_that_cannot_be_used(url):
    with pytest.raises(ValueError, match="endpoint"):
        endpoint.Endpoint(url, anywhere=False)


def test_an_unknown_host_is_named(monkeypatch):
    def look_up(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ValueError, match="host 'gpu' of the endpoint is unknown"):
        endpoint.Endpoint("http://gpu:8000/v1", anywhere=False)


def test_a_password_in_the_endpoint_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="user or password") as caught:
        endpoint.Endpoint("http://me:s3cret@localhost/v1", anywhere=False)
    assert "s3cret" not in str(caught.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the openssl command")
def test_tls_checks_the_name_and_not_the_address(tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=gpu.example "
    command += "-addext subjectAltName=DNS:gpu.example -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving() as stub:
        stub.socket = context.wrap_socket(stub.socket, server_side=True)
        port = stub.server_address[1]
        names_lead_to(monkeypatch, ["127.0.0.1"], ["127.0.0.1"])
        stub.url = f"https://gpu.example:{port}/v1"
        read(stub.url, 3)
        stub.url = f"https://other.example:{port}/v1"
        with pytest.raises(ValueError, match="SSLCertVerificationError"):
            read(stub.url, 1)
    assert len(stub.seen) == 3
