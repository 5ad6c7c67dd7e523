"""The folder for browsers: what the page is told, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import attar
from attar.export.export import Wanted
from attar.export.target import find
from attar.models import Model, save
from export.decoders import decoder
from tiny_models import press, tiny

pytest.importorskip("onnxruntime")
USUAL = Wanted(threads=1)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MODULES = Path(__file__).parents[2] / "node_modules"
LIBRARIES = (
    "onnxruntime-web/dist/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs",
)


def exported(model: Model, folder: Path) -> Path:
    save(model, folder / "model")
    return attar.export(folder / "model", "onnx-web", folder / "out", wanted=USUAL).folder


def chatty() -> Model:
    model = press(decoder(), "int4-g32", "int8-g32")
    model.tokenizer.chat_template = (
        "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}answer: {% endif %}"
    )
    return model


def test_the_page_is_told_what_it_needs(tmp_path: Path) -> None:
    folder = exported(chatty(), tmp_path)
    page = json.loads((folder / "page.json").read_text())
    assert page["heads"] == [[2, 16]] * 3
    assert (page["before"], page["after"]) == ("<|start|>", "<|end|>answer: ")
    assert page["ends"] == [1]
    assert page["data"] == ["model.onnx.data"]
    record = json.loads((folder / "attar-export.json").read_text())
    assert record["verified"]["codes"]["layers"] > 20
    assert list(record["engines"]) == ["onnxruntime"]
    assert "speed" not in record["engines"]["onnxruntime"]  # a browser's is another
    for name in ("index.html", "page.mjs", "model.mjs", "README-web.md", "tokenizer.json"):
        assert (folder / name).is_file()


def test_classes_have_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    model = tiny("roberta", "classification")
    find("onnx-web").write(model, folder)
    page = json.loads((folder / "page.json").read_text())
    assert page["labels"] == list(model.labels)
    assert page["context"] == model.config.max_position_embeddings - model.config.pad_token_id - 1


def test_the_page_asks_nothing_of_others() -> None:
    folder = Path(attar.__file__).parent / "export" / "web"
    for path in folder.glob("*.[hm]*"):
        told = re.sub(r"<!--.*?-->", "", path.read_text("utf-8"), flags=re.S)
        assert path.suffix == ".md" or "://" not in told


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    if not all((MODULES / path).is_file() for path in LIBRARIES):
        pytest.skip("npm install --no-save onnxruntime-web @huggingface/tokenizers")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "browser"), executable_path=CHROMIUM, args=FLAGS
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> str:
        quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_in_a_browser(browser: Any, serve: Any, tmp_path: Path) -> None:
    model = chatty()
    folder = exported(model, tmp_path)
    page = browser.new_page()
    address = serve(folder)
    page.goto(address)
    page.wait_for_function("document.getElementById('trouble').textContent !== ''")
    assert "README-web.md says how" in page.inner_text("#trouble")

    (folder / "lib").mkdir()
    for path in LIBRARIES:
        shutil.copyfile(MODULES / path, folder / "lib" / Path(path).name)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function("document.getElementById('facts').textContent === 'Ready.'")
    page.fill("#text", "the crates")
    page.click("#go")
    page.wait_for_function("document.getElementById('stop').disabled")
    assert page.inner_text("#trouble") == ""
    assert all(url.startswith(address) for url in asked)

    ids = model.tokenizer("<|start|>the crates<|end|>answer: ", add_special_tokens=False).input_ids
    prompt, room = len(ids), model.config.max_position_embeddings
    while len(ids) < room + 1:
        with torch.no_grad():
            ids.append(int(model.module(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            ids.pop()
            break
    wanted = model.tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    assert page.text_content("#answer")[:8] == wanted[:8]
    assert f"{len(ids) - prompt} tokens" in page.inner_text("#facts")


def test_a_template_that_takes_no_question_is_told(tmp_path: Path) -> None:
    model = chatty()
    model.tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    folder = exported(model, tmp_path)
    page = json.loads((folder / "page.json").read_text())
    assert (page["before"], page["after"]) == ("", "")
    [warning] = json.loads((folder / "attar-export.json").read_text())["warnings"]
    assert warning.startswith("the chat template takes no question (no system message)")


@pytest.mark.parametrize(("pad", "last"), [(2, 2), (None, 319)])
def test_no_end_is_made_up(pad: int | None, last: int, tmp_path: Path) -> None:
    model = decoder(pad_token_id=pad, eos_token_id=None)
    model.tokenizer.eos_token = None
    find("onnx-web").write(model, tmp_path)
    assert json.loads((tmp_path / "page.json").read_text())["ends"] == []
    genai = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    assert (genai["eos_token_id"], genai["pad_token_id"]) == ([last], last)  # it wants one
