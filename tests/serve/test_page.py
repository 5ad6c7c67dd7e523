"""The page in a real browser: two columns, streamed, and nothing from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from attar.serve.settings import Settings, Source
from serve.fakes import Echo, Running, opener, running, settings

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    sources = (
        Source(name="pressed", path="pressed"),
        Source(name="kinds", path="kinds"),
        Source(name="vectors", path="vectors"),
        Source(name="large", path="large", original=True),
    )
    with running(Settings(models=sources), opener(lambda: Echo(0.001))) as found:
        yield found


def test_the_page_asks_nothing_of_others(server: Running):
    answer = httpx.get(f"{server.url}/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "://" not in answer.text.replace("http://www.w3.org", "")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("browser")), executable_path=CHROMIUM, args=FLAGS
        )
        found = context.new_page()
        found.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        yield found
        context.close()


def test_an_answer_beside_the_originals(page: Any, server: Running):
    troubles: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: said.type == "error" and troubles.append(said.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.locator("#model option")).to_have_count(3)
    page.fill("#text", "Good morning, <b>Ann</b>")
    page.click("#go")
    facts = page.locator(".facts")
    expect(facts).to_have_count(2)
    for column in range(2):
        expect(facts.nth(column)).to_contain_text("tokens in")
    titles = page.locator("h2").all_text_contents()
    assert [title.split()[0] for title in titles] == ["pressed", "large"]
    assert "the original" in titles[1]
    for answer in page.locator(".answer").all_text_contents():
        assert answer == "user: Good morning, <b>Ann</b>\nassistant: "
    assert not troubles
    assert all(url.startswith(server.url) for url in asked)


def test_classes_and_likeness(page: Any, server: Running):
    page.goto(server.url)
    expect(page.locator("#model option")).to_have_count(3)
    page.select_option("#model", "kinds")
    page.fill("#text", "ab\nabc")
    page.click("#go")
    page.wait_for_selector("td")
    first = page.locator("article").first
    rows = first.locator("tr").all_text_contents()
    assert ["even" in rows[0], "odd" in rows[1]] == [True, True]
    page.wait_for_selector("#go:not([disabled])")
    page.select_option("#model", "vectors")
    page.click("#go")
    page.wait_for_selector("caption")
    assert page.locator("article").first.locator("tr").count() == 2


def test_stop_stops(page: Any):
    with running(settings(limits={"context": 900}), opener(lambda: Echo(0.05))) as slow:
        page.goto(slow.url)
        expect(page.locator("#model option")).to_have_count(1)
        page.fill("#text", "x" * 400)
        page.fill("#tokens", "400")
        page.click("#go")
        expect(page.locator(".answer")).to_contain_text("user: xx")
        page.click("#stop")
        expect(page.locator(".facts")).to_have_text("stopped")
        assert slow.idle()


def test_a_key_is_asked_for(page: Any):
    with running(settings(keys=("a-long-key",))) as locked:
        page.goto(locked.url)
        page.wait_for_selector("#key-box:not([hidden])")
        assert "API key" in page.text_content("#trouble")
        page.fill("#key", "a-long-key")
        page.fill("#text", "hello")
        page.click("#go")
        expect(page.locator(".facts")).to_contain_text("tokens in")


def test_the_file_is_one_file():
    import attar.serve

    text = (Path(attar.serve.__file__).parent / "page.html").read_text("utf-8")
    assert "<link" not in text
    assert "src=" not in text
