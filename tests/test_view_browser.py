"""The page in headless Chromium; needs playwright (the package alone) and a chromium on the path."""

import base64
import io
import shutil
import socket
import threading
import time

import looking
import numpy as np
import pytest
from PIL import Image

from repgls_jax import findings
from repgls_jax.data import shards
from repgls_jax.saliency import scoring

playwright = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium on the path", allow_module_level=True)

from repgls_jax.view import server  # noqa: E402
from repgls_jax.view.desk import Desk, Reader  # noqa: E402

WAIT = 240_000  # ms; machines that run many tests at once are slow
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  const where = document.getElementById("drop");
  for (const kind of ["dragenter", "dragover", "drop"])
    where.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return looking.phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def address(build):
    readers = []
    for seed in range(2):
        network = looking.network(seed=seed)
        explainer = scoring.Explainer.of(network.model, network.params, ("attention",), batch_size=1)
        explainer.explain(np.zeros((1, looking.SIDE, looking.SIDE, 1), np.uint8))  # compiled before anyone waits for it
        readers.append(Reader(f"network {seed}", network, explainer))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(server.make(Desk(readers, build)), host="127.0.0.1", port=port, log_level="warning")
    served = uvicorn.Server(config)
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    while not served.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    served.should_exit = True
    thread.join()


@pytest.fixture
def page(address):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1480, "height": 940})
        page.set_default_timeout(WAIT)
        complaints, asked = [], []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("body[data-state=ready]")
        yield page
        assert not [url for url in asked if not url.startswith((address, "blob:", "about:", "data:"))]
        assert not [text for text in complaints if "status of 4" not in text]  # refusals that a test asked for
        browser.close()


def until(page, expression):
    """Waits for an expression to hold; the page's policy forbids the driver's own way, which evaluates a text there."""
    ends = time.monotonic() + WAIT / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < ends, expression
        page.wait_for_timeout(50)


def drop(page, name, content):
    page.evaluate("document.body.dataset.state = 'waiting'")
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])
    page.wait_for_selector("body[data-state=ready], body[data-state=error]")


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def overlay(page, number=0):
    """The picture in the middle of the page, as drawn."""
    until(page, "[...document.querySelectorAll('#views img')].every(i => i.complete && i.naturalWidth > 0)")
    shot = page.locator("#views img").nth(number).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def test_a_film_is_dropped_and_explained_and_networks_are_compared(page, build):
    film = shards.images(build / "shards", "test", [0])[0]
    drop(page, "film.png", png(film[..., 0]))
    for seed in range(2):
        probability, _ = looking.network(seed=seed).forward(film[None])
        shown = page.locator(f"td.p[data-network='{seed}']").all_text_contents()
        assert shown == [f"{p:.2f}" for p in np.asarray(probability[0], float)]
    assert page.locator("#views img").count() == 2
    tinted = overlay(page)
    assert np.abs(tinted[..., 0] - tinted[..., 2]).max() > 30
    page.click("button[data-method=film]")
    bare = overlay(page)
    assert np.abs(bare[..., 0] - bare[..., 2]).max() < 10  # the corners show the paper
    page.click("button[data-method=attention]")
    page.click("tr[data-finding=Edema] button")
    assert "Edema" in page.locator("#views figcaption").first.text_content()
    assert page.locator("tr[aria-selected=true]").get_attribute("data-finding") == "Edema"
    assert page.locator("#reported").is_hidden()
    assert np.abs(overlay(page, 1) - bare).max() > 30


def test_what_is_no_film_is_told_and_the_page_goes_on(page, build):
    drop(page, "notes.txt", b"no film at all")
    assert "neither a PNG" in page.locator("#message").text_content()
    film = shards.images(build / "shards", "test", [1])[0, ..., 0]
    drop(page, "film.png", png(film))
    assert page.locator("#message").is_hidden()
    assert page.locator("#rows tr").count() == len(findings.CHEXPERT)


def test_a_set_is_browsed_and_its_reports_are_read(page, build):
    page.select_option("#filter", "Pleural Effusion")
    truth = shards.examples(build / "shards", "test")["truth"]
    wanted = np.flatnonzero(truth[:, findings.CHEXPERT.index("Pleural Effusion")])
    until(page, f"document.querySelectorAll('#films button').length === {len(wanted)}")
    page.evaluate("document.body.dataset.state = 'waiting'")
    page.click(f"#films button[data-number='{wanted[0]}']")
    page.wait_for_selector("body[data-state=ready]")
    assert "Pleural Effusion" in page.locator("#said").text_content()
    frame = page.frame_locator("#report")
    frame.locator("h2").first.wait_for()
    assert frame.locator(".text .m").count() > 0
    assert frame.locator("tbody tr").count() > 0
    assert page.locator("#films button[aria-current=true]").get_attribute("data-number") == str(wanted[0])
