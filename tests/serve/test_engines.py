"""Exports behind the server: each engine answers clients as it answers alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import openai
import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

import attar
from attar.export.export import Wanted
from attar.models import Files, load, save
from attar.runtimes import find
from attar.runtimes.runtime import GREEDY, Decoder, Sampling
from attar.runtimes.torch import TorchDecoder
from attar.serve.settings import Limits, Settings, Source
from export.decoders import byte_level, decoder
from serve.fakes import REAL, running
from tiny_models import press

ENGINES = {  # the target that each runs, and the package that it wants
    "llama-cpp": ("gguf", "xllamacpp"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "genai": ("onnx", "onnxruntime_genai"),
    "openvino": ("openvino", "openvino_tokenizers"),
}
ASKED = ("onnxruntime",)  # where genai is installed it runs the folder otherwise
PROMPTS = [f"crate {number} of the keeper" for number in range(6)]


@dataclass(frozen=True)
class Served:
    """A tiny model at 4 bits, exported, behind a server; and where the artifact lies."""

    client: openai.OpenAI
    engine: str
    folder: Path
    artifact: Path

    def alone(self) -> Decoder:
        """The engine as a server of four answers at once opens it, without the server."""
        return cast("Decoder", find(self.engine).serve(self.folder, None, 4, 4096))


@pytest.fixture(scope="module", params=ENGINES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    name = request.param
    target, package = ENGINES[name]
    pytest.importorskip(package)
    root: Path = tmp_path_factory.mktemp(name)
    save(press(decoder(), "q4_0"), root / "pressed")
    wanted = Wanted(speed=False, verify=False, threads=1)
    done = attar.export(root / "pressed", target, root / "out", root, wanted)
    asked = name if name in ASKED else None
    source = Source(name="pressed", path=str(done.folder), engine=asked)
    settings = Settings(models=(source,), limits=Limits(batch=4))
    with running(settings, REAL) as server:
        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        )
        answer(client, PROMPTS[0])
        described = client.models.retrieve("pressed").model_extra or {}
        assert described["engine"] == name
        yield Served(client, name, done.folder, root / "pressed")


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.client


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


def a_gguf_file(home: Path) -> Path:
    """The folder of a decoder with room for 256 tokens, as llama.cpp runs it."""
    pytest.importorskip("xllamacpp")
    save(press(decoder(max_position_embeddings=256), "q4_0"), home / "pressed")
    wanted = Wanted(speed=False, verify=False, threads=1)
    return attar.export(home / "pressed", "gguf", home / "out", home, wanted).folder


def test_llama_cpp_writes_the_same_beside_others_to_the_bit(tmp_path: Path) -> None:
    """Long prompts, which flash attention and what is known of earlier ones would change."""
    folder = a_gguf_file(tmp_path)
    rng = np.random.default_rng(0)
    shared = rng.integers(5, 90, 30).tolist()
    prompts = [[*shared, *rng.integers(5, 90, size).tolist()] for size in (10, 60, 35, 90, 40, 65)]
    drawing = Sampling(1.3, seed=5)

    def write(prompt: list[int], how: Sampling = GREEDY) -> list[tuple[int, float | None]]:
        return [(token.id, token.logprob) for token in opened.generate(prompt, 8, how)]

    with cast("Decoder", find("llama-cpp").serve(folder, 1, 4, 256)) as opened:
        alone = [write(prompt) for prompt in prompts]
        drawn = [write(prompt, drawing) for prompt in prompts]
        assert [write(prompt) for prompt in prompts] == alone  # not from what is known of it
        write(shared[:1])  # how all begin, and no more to go on with
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(write, prompts * 3)) == alone * 3
            assert list(threads.map(lambda each: write(each, drawing), prompts * 2)) == drawn * 2


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


def drawn(client: openai.OpenAI, seed: int | None, prompt: str = PROMPTS[2], **more: Any) -> Any:
    """A completion that is drawn at random."""
    usual = {"model": "pressed", "max_tokens": 8, "temperature": 1.3}
    return client.completions.create(**{**usual, "prompt": prompt, "seed": seed, **more}).choices[0]


def chatted(client: openai.OpenAI, seed: int, **more: Any) -> Any:
    """The same as a chat, whose template adds nothing."""
    turns: Any = [{"role": "user", "content": PROMPTS[2]}]
    usual: Any = {"model": "pressed", "max_tokens": 8, "temperature": 1.3}
    return client.chat.completions.create(**usual, messages=turns, seed=seed, **more).choices[0]


def streamed(client: openai.OpenAI, seed: int, **more: Any) -> str:
    usual: Any = {"model": "pressed", "prompt": PROMPTS[2], "max_tokens": 8, "temperature": 1.3}
    pieces = client.completions.create(**usual, seed=seed, stream=True, **more)
    return "".join(piece.choices[0].text for piece in pieces if piece.choices)


def test_seeds_draw_the_same_again(client: openai.OpenAI) -> None:
    seeds = range(4)
    alone = [drawn(client, seed).text for seed in seeds]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(len(seeds)) as threads:
        together = list(threads.map(lambda seed: drawn(client, seed).text, seeds))
    assert together == alone
    assert len({drawn(client, None).text for _ in seeds}) > 1
    assert streamed(client, 1) == alone[1]
    assert [chatted(client, seed).message.content for seed in seeds] == alone


def named(token: int) -> str:
    """A token's text, or bytes that are no character."""
    text = byte_level().decode([token])
    if "\ufffd" not in text:
        return text
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    parts = [letters[letter] for letter in byte_level().convert_ids_to_tokens(token)]
    return "bytes:" + "".join(f"\\x{part:02x}" for part in parts)


def test_a_seed_draws_what_the_engine_draws_alone(served: Served) -> None:
    ids = byte_level()(PROMPTS[2]).input_ids
    with served.alone() as opened:
        tokens = list(opened.generate(ids, 8, Sampling(1.3, seed=5), stop=[1], top=3))
        exact = opened.logprobs([*ids, *(token.id for token in tokens)])[len(ids) - 1 :]
    told = drawn(served.client, 5, logprobs=3).logprobs
    assert told.tokens == [named(token.id) for token in tokens]
    assert told.token_logprobs == pytest.approx([t.logprob for t in tokens], abs=0.02)
    best = [max(top.values()) for top in told.top_logprobs]
    assert best == pytest.approx([token.top[0][1] for token in tokens], abs=0.02)
    # the model's own log-probabilities, before any temperature
    gaps = np.array([exact[at, t.id] - t.logprob for at, t in enumerate(tokens)])
    assert np.nanmedian(np.abs(gaps)) < 0.05


def test_temperature_is_what_is_drawn_with(served: Served) -> None:
    cold, seeds = 0.4, range(100)
    with served.alone() as opened:
        known = opened.logprobs(byte_level()(PROMPTS[2]).input_ids)[-1].astype(np.float64)
    known = known[~np.isnan(known)]
    shares = np.exp(known / cold) / np.exp(known / cold).sum()
    mean = (shares * known).sum()
    error = np.sqrt((shares * (known - mean) ** 2).sum() / len(seeds))
    asked = {"temperature": cold, "max_tokens": 1, "logprobs": 0}
    with ThreadPoolExecutor(4) as threads:
        each = list(threads.map(lambda seed: drawn(served.client, seed, **asked), seeds))
    found = np.mean([choice.logprobs.token_logprobs[0] for choice in each])
    assert abs(found - mean) < 4 * error
    plain = (np.exp(known) * known).sum()
    assert abs(plain - mean) > 8 * error  # drawn without it would be told


def test_the_likeliest_few(client: openai.OpenAI) -> None:
    greedy = answer(client, PROMPTS[2])
    assert drawn(client, 3, extra_body={"top_k": 1}).text == greedy
    assert drawn(client, 3, top_p=1e-6).text == greedy
    places: list[int] = []
    for seed in range(6):
        told = chatted(client, seed, logprobs=True, top_logprobs=2, extra_body={"top_k": 2})
        for each in told.logprobs.content:
            places.append([other.logprob for other in each.top_logprobs].index(each.logprob))
    assert 0 < sum(places) < len(places)


def test_log_probabilities_are_the_artifacts(served: Served) -> None:
    ids = byte_level()(PROMPTS[3]).input_ids
    with served.alone() as opened:
        written = [token.id for token in opened.generate(ids, 8, stop=[1])]
    found = drawn(served.client, None, PROMPTS[3], temperature=0, logprobs=3)
    told = found.logprobs
    assert found.text == byte_level().decode(written, skip_special_tokens=True)
    assert told.tokens == [named(id_) for id_ in written]
    assert [max(top.values()) for top in told.top_logprobs] == told.token_logprobs
    ours = TorchDecoder(load(Files(served.artifact))).logprobs([*ids, *written])[len(ids) - 1 :]
    gaps = [ours[at, id_] - told.token_logprobs[at] for at, id_ in enumerate(written)]
    assert np.median(np.abs(gaps)) < 0.3  # it rounds inputs to 8 bits


def test_stop_words_end_what_is_drawn(client: openai.OpenAI) -> None:
    whole = drawn(client, 1).text
    stop = whole[len(whole) // 2]
    cut = drawn(client, 1, stop=[stop, "never"])
    assert (cut.text, cut.finish_reason) == (whole.partition(stop)[0], "stop")
    assert streamed(client, 1, stop=stop) == cut.text


def test_llama_cpp_draws_nothing_behind_the_end_that_its_file_tells_of(tmp_path: Path) -> None:
    """Hubs' files end a turn with a token of which a tokenizer's own files are not at hand."""
    folder, ended = a_gguf_file(tmp_path), 0
    with cast("Decoder", find("llama-cpp").serve(folder, 1, 1, 256)) as opened:
        for seed in range(12):
            drawn = opened.generate([9, 10, 11], 60, Sampling(3.0, seed=seed))
            found = [token.id for token in drawn]
            assert 1 not in found[:-1]
            ended += found[-1] == 1
    assert ended, "no answer came to its end"


def test_llama_cpp_writes_up_to_its_limit_within_a_character(tmp_path: Path) -> None:
    """It holds tokens back that end within one, and those at the limit as well."""
    folder = a_gguf_file(tmp_path)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(5, 90, size).tolist() for size in (5, 9, 14, 20)]
    broken = 0
    with cast("Decoder", find("llama-cpp").serve(folder, 1, 1, 256)) as opened:
        for prompt in prompts:
            whole = [token.id for token in opened.generate(prompt, 10)]
            for limit in range(1, len(whole)):
                found = [token.id for token in opened.generate(prompt, limit)]
                assert found == whole[:limit]
                broken += byte_level().decode(found).endswith("\ufffd")
    assert broken, "no answer ended within a character"
