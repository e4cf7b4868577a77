"""The site as a visitor has it: no dead link, no other host, no error in a browser; search finds, a slider moves; a
keyboard and a screen reader have what they need.
"""

import asyncio
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

from sglrlib.paths import ROOT

pytest.importorskip("myst_nb", reason="the site's packages are not installed: pip install -e .[site]")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FILTER = """
(() => {
  const rows = () => [...document.querySelectorAll("#verdicts tbody tr")].filter((row) => !row.hidden).length;
  const all = rows(), list = document.querySelectorAll("select")[1];
  list.value = "holds";
  list.dispatchEvent(new Event("change"));
  return 0 < rows() && rows() < all;
})()
"""
MOVE = """
(() => {
  const slider = document.querySelector("figure.chart input[type=range]");
  const curve = () => [...document.querySelectorAll("figure.chart path")].map((path) => path.getAttribute("d")).join();
  const before = curve();
  slider.value = slider.value > 0.5 ? slider.min : slider.max;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  return new Promise((done) => setTimeout(() => done(before !== "" && curve() !== before), 500));
})()
"""
READABLE = (Path(__file__).parent / "readable.js").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as make site builds it; a warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_notebooks_page_opens_it_elsewhere_once_the_repository_is_known(monkeypatch):
    page = "notebooks/00_tour"
    text = (ROOT / f"{page}.ipynb").read_text()
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert conf["with_links"](json.loads(text), page) == json.loads(text)
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/sglr")
    title, _, links, *_ = conf["with_links"](json.loads(text), page)["cells"][0]["source"].splitlines()
    assert title.startswith("# 00")
    assert f"(https://mybinder.org/v2/gh/someone/sglr/HEAD?urlpath=lab/tree/{page}.ipynb)" in links
    assert f"(https://colab.research.google.com/github/someone/sglr/blob/HEAD/{page}.ipynb)" in links


class Links(HTMLParser):
    """What a page points at, what it loads, and the names within it."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.names, self.pictures = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names.add(found.get("id"))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found["href"])
        if tag == "img":
            self.pictures.append(found.get("alt"))


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "data", "mailto"):
                assert parts.scheme == "data" or target not in page.loaded, (path.name, target)
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.exists(), (path.name, target)
            if parts.fragment and there in pages:
                assert unquote(parts.fragment) in pages[there].names, (path.name, target)


def test_every_formula_is_drawn_without_a_script_and_every_figure_is_described(site):
    for path in (site / "notebooks").glob("*.html"):
        text = path.read_text()
        formulas = "$" in (ROOT / "notebooks" / path.with_suffix(".ipynb").name).read_text()
        assert ("<math" in text or not formulas) and "MathJax" not in text, path.name
        assert "$$" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL), path.name
        assert all(Links(text).pictures), path.name


async def visited(browser: Path, pages: list[str], then: dict[str, str]) -> dict[str, dict]:
    """What a browser says of pages: errors, hosts that it asked, the answer to a script of then, and what of READABLE
    fails in a wide and a narrow window.
    """
    port = (browser / "DevToolsActivePort").read_text().split()[0]
    at = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT", body="")
    socket = await websocket_connect(json.loads(at.body)["webSocketDebuggerUrl"], max_message_size=2**28)
    number, events = 0, []

    async def call(method: str, **parameters):
        nonlocal number
        number += 1
        await socket.write_message(json.dumps(dict(id=number, method=method, params=parameters)))
        while True:
            message = json.loads(await socket.read_message())
            if message.get("id") == number:
                return message.get("result", {})
            events.append(message)

    for domain in ("Page", "Runtime", "Log", "Network"):
        await call(f"{domain}.enable")
    found = {}
    for page in pages:
        events.clear()
        await call("Page.navigate", url=page)
        while not any(event["method"] == "Page.loadEventFired" for event in events):
            events.append(json.loads(await socket.read_message()))
        ready = "new Promise((done) => setTimeout(() => done(document.title), 300))"
        script = then.get(page, ready)
        for _ in range(50):  # what is to be moved may not be there at once
            answer = await call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
            if answer.get("result", {}).get("value"):
                break
            await asyncio.sleep(0.2)
        unreadable = []
        for width in (1020, 400):
            await call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
            said = await call("Runtime.evaluate", expression=READABLE, awaitPromise=True, returnByValue=True)
            unreadable += said["result"].get("value", [said])
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        wrong = [e for e in events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        wrong = [e for e in wrong if e["params"].get("entry", dict(level="error"))["level"] == "error"]
        answer = answer.get("result", {}).get("value")
        found[page] = dict(wrong=wrong, asked=asked, answer=answer, unreadable=unreadable)
    socket.close()
    while await socket.read_message() is not None:
        pass
    return found


@pytest.fixture
def served(site):
    """The site's address on this machine: search reads pages, which browsers refuse to do from files."""
    handler = partial(SilentHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        pass


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (Debian: apt install chromium)")
def test_in_a_browser_each_page_can_be_read_search_finds_and_sliders_and_filters_work(site, served, tmp_path, wait_for):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path}"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "DevToolsActivePort").exists, browser)
        pages = {f"{served}/{path.relative_to(site)}": path.read_text() for path in site.rglob("*.html")}
        charts = [page for page, text in pages.items() if 'figure class="chart"' in text]
        search = f"{served}/search.html?q=AutoAttack"
        then = {search: "document.querySelector('#search-results')?.innerText.includes('AutoAttack')"}
        then |= dict.fromkeys(charts, MOVE) | {f"{served}/docs/claims.html": FILTER}
        found = asyncio.run(visited(tmp_path, [*pages, search], then))
    finally:
        browser.terminate()
        browser.wait()
    assert len(charts) >= 2
    for page, there in found.items():
        assert not there["wrong"], (page, there["wrong"])
        assert all(url.startswith((served, "data:", "blob:")) for url in there["asked"]), page
        assert there["answer"], page
        assert not there["unreadable"], (page, there["unreadable"])
