"""Exports behind the server: each engine answers clients as it answers alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

import attar
from attar.export.export import Wanted
from attar.models import save
from attar.serve.settings import Limits, Settings, Source
from export.decoders import decoder
from serve.fakes import REAL, running
from tiny_models import press

ENGINES = {
    "gguf": ("xllamacpp", "llama-cpp"),
    "onnx": ("onnxruntime_genai", "genai"),
    "openvino": ("openvino_tokenizers", "openvino"),
}
PROMPTS = [f"crate {number} of the keeper" for number in range(6)]


@pytest.fixture(scope="module", params=ENGINES)
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """A client of a tiny model at 4 bits, exported for an engine."""
    package, name = ENGINES[request.param]
    pytest.importorskip(package)
    root: Path = tmp_path_factory.mktemp(request.param)
    save(press(decoder(), "q4_0"), root / "pressed")
    wanted = Wanted(speed=False, verify=False, threads=1)
    done = attar.export(root / "pressed", request.param, root / "out", root, wanted)
    source = Source(name="pressed", path=str(done.folder))
    settings = Settings(models=(source,), limits=Limits(batch=4))
    with running(settings, REAL) as server:
        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        )
        answer(client, PROMPTS[0])
        described = client.models.retrieve("pressed").model_extra or {}
        assert described["engine"] == name
        yield client


def answer(client: openai.OpenAI, prompt: str) -> str:
    """What is written after a prompt, nothing drawn."""
    found = client.completions.create(model="pressed", prompt=prompt, max_tokens=8, temperature=0)
    assert found.usage is not None
    assert found.usage.completion_tokens <= 8
    assert found.choices[0].finish_reason in ("length", "stop")
    return found.choices[0].text


def test_many_clients_get_what_one_gets(client: openai.OpenAI) -> None:
    alone = [answer(client, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        together = list(threads.map(lambda prompt: answer(client, prompt), PROMPTS))
    assert together == alone
    assert len(set(alone)) > 1


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = answer(client, PROMPTS[0])
    pieces = client.completions.create(
        model="pressed", prompt=PROMPTS[0], max_tokens=8, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole


def test_stop_words_and_chats(client: openai.OpenAI) -> None:
    whole = answer(client, PROMPTS[1])
    stop = whole[len(whole) // 2]
    cut = client.completions.create(
        model="pressed", prompt=PROMPTS[1], max_tokens=8, temperature=0, stop=[stop]
    ).choices[0]
    assert cut.text == whole.partition(stop)[0]
    assert cut.finish_reason == "stop"
    chat = client.chat.completions.create(
        model="pressed",
        messages=[{"role": "user", "content": PROMPTS[0]}],
        max_tokens=8,
        temperature=0,
    ).choices[0]
    assert chat.message.content == answer(client, PROMPTS[0])
