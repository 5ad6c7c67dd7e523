"""Teachers behind an address that write: what they are asked, what is kept, what is refused."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.errors import Unreachable, UserError
from attar.models import save
from attar.models.model import Model
from attar.serve.settings import Settings, Source
from attar.techniques.data.generate import Generate
from attar.techniques.distill.sequence import SequenceLevel
from attar.train.parts import one_by_one
from attar.train.served import Server as Asking
from attar.train.served import said_after
from attar.train.writing import Writing
from loopback import Reply, Server, serving
from serve.fakes import REAL, TEMPLATE, running

ADDRESS = "http://127.0.0.1:9/v1#m"
CHAT = ({"role": "user", "content": "w1?"}, {"role": "assistant", "content": "w2"})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def rows(*texts: str, **more: Any) -> Dataset:
    examples = [Example(text, where=f"rows.jsonl:{n}", **more) for n, text in enumerate(texts, 1)]
    return Dataset("train", examples, "f", tiny_models.LABELS)


def gone(name: str, task: Any = None) -> Model:
    raise AssertionError(f"{name} was loaded")


def context(data: Dataset, model: Callable[..., Model] = gone, **more: Any) -> Context:
    return Context("causal-lm", lambda _: data, model, **more)


def completing(answer: Callable[[dict[str, Any]], Any]) -> Callable[..., Reply]:
    """A server that goes on from a text, or answers a chat, by a function of what it is asked."""

    def reply(path: str, asked: dict[str, Any]) -> Reply:
        found = answer(asked)
        if isinstance(found, tuple):
            return found
        text = {"message": {"content": found}} if path.endswith("chat/completions") else {}
        return 200, {"choices": [{"text": found, "finish_reason": "stop", **text}]}

    return reply


def test_it_goes_on_from_texts_word_for_word(server: Server) -> None:
    server.reply = completing(lambda asked: f" and {asked['prompt'].upper()}")
    ctx = context(rows("w1 ", "w2", label="good", domain="law"), seed=3)
    step = Generate(teacher=server.url, data="train", new_tokens=9, temperature=0.7, top_p=0.8)
    made = step.make(ctx)
    assert [(e.text, e.label, e.domain, e.where) for e in made.examples] == [
        ("w1  and W1 ", "good", "law", "rows.jsonl:1"),
        ("w2 and W2", "good", "law", "rows.jsonl:2"),
    ]
    how = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.8}
    assert all(asked.items() >= how.items() for asked in server.asked)
    assert ctx.notes == {"writing": {"stop": 2}, "written": 2, "sound": 2, "kept": 1.0}


def test_chats_and_questions_are_asked_as_chats(server: Server) -> None:
    server.reply = completing(lambda asked: f" <{asked['messages'][-1]['content']}> ")
    chat = Dataset("train", [Example("user: w1?", messages=CHAT)], "f")
    (made,) = Generate(teacher=server.url, data="train").make(context(chat)).examples
    assert made.messages == (CHAT[0], {"role": "assistant", "content": "<w1?>"})
    assert made.text == "user: w1?\nassistant: <w1?>"
    ask = Generate(teacher=server.url, data="train", ask="One that is {label}: {text}")
    (made,) = ask.make(context(rows("w7", label="good"))).examples
    assert (made.text, made.label, made.messages) == ("<One that is good: w7>", "good", None)
    assert [asked["messages"] for asked in server.asked] == [
        [CHAT[0]],
        [{"role": "user", "content": "One that is good: w7"}],
    ]


def test_a_prompt_that_comes_again_has_another_seed_and_the_next_run_the_same(
    server: Server,
) -> None:
    server.reply = completing(lambda asked: f" {asked['seed']}")
    step = Generate(teacher=server.url, data="train", texts=6, server={"at_once": 3})  # pyright: ignore[reportArgumentType]
    made = [step.make(context(rows("w1", "w2"), seed=seed)).examples for seed in (1, 1, 2)]
    assert len({example.text for example in made[0]}) == 6
    assert made[0] == made[1]
    assert not {e.text for e in made[0]} & {e.text for e in made[2]}
    assert all(0 <= asked["seed"] < 2**31 for asked in server.asked)
    assert server.most <= 3


def test_what_is_empty_filtered_looping_or_refused_is_left_out_and_told(server: Server) -> None:
    def answer(asked: dict[str, Any]) -> Any:
        texts = {
            "b": ("", "stop"),
            "c": ("cut off in th", "content_filter"),
            "d": (" the cat sat on" * 6 + " the ca", "length"),
            "e": ("好的好的" * 6, "length"),
            "g": (" no end", "length"),
        }
        if asked["prompt"] == "f":
            return 400, {"error": "too long"}
        text, reason = texts.get(asked["prompt"], (" good", "stop"))
        return 200, {"choices": [{"text": text, "finish_reason": reason}]}

    server.reply = completing(answer)
    ctx = context(rows("a", "b", "c", "d", "e", "f", "g"))
    made = Generate(teacher=server.url, data="train").make(ctx)
    assert [example.text for example in made.examples] == ["a good", "g no end"]
    told = {"stop": 1, "length": 3, "empty": 1, "content_filter": 1, "refused": 1}
    assert ctx.notes["writing"] == told
    (warning,) = ctx.warnings
    assert "1 of 7 prompts were refused and left out; the first is rows.jsonl:6: " in warning
    assert "too long" in warning


def test_a_server_that_refuses_the_first_or_has_no_such_model_is_not_asked_on(
    server: Server,
) -> None:
    def refusing(path: str, asked: dict[str, Any]) -> Reply:
        time.sleep(0.2 if server.asked[1:] else 0)
        return 400, {"error": "no chat template"}

    server.reply = refusing
    step = Generate(teacher=server.url, data="train", ask="{text}", server={"at_once": 1})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"refuses with 400: .*no chat template"):
        step.make(context(rows(*"abcdefgh")))
    assert len(server.asked) < 4
    missing = {"error": "the model `tiny` does not exist"}
    server.reply = completing(lambda asked: " x" if asked["prompt"] == "a" else (404, missing))
    with pytest.raises(UserError, match=r"refuses with 404: .*does not exist"):
        Generate(teacher=server.url, data="train").make(context(rows(*"abcdefgh")))


def test_nothing_but_empty_answers_is_an_error(server: Server) -> None:
    server.reply = completing(lambda asked: "")
    with pytest.raises(UserError, match=r"nothing after any of 2 prompts \(2 empty\)"):
        Generate(teacher=server.url, data="train").make(context(rows("a", "b")))


class Counting:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.bars: list[list[Any]] = []

    def bar(self, label: str, total: float) -> Any:
        from contextlib import nullcontext

        self.bars.append([label, total, 0])
        return nullcontext(self)

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        self.bars[-1][2] += amount

    def say(self, text: str) -> None: ...


def test_what_was_written_when_the_server_died_is_not_asked_for_again(
    server: Server, tmp_path: Path
) -> None:
    """It dies at the ninth of twenty: those before are kept, and one that is under way then."""
    texts = [f"w{number}" for number in range(20)]
    settings: dict[str, Any] = {"at_once": 3, "tries": 1}
    step = Generate(teacher=server.url, data="train", server=settings)  # pyright: ignore[reportArgumentType]

    def write(asked: dict[str, Any]) -> str:
        return f" {asked['prompt']} {asked['seed']}"

    server.reply = completing(write)
    calm = step.make(context(rows(*texts))).examples

    dead = threading.Event()

    def dying(asked: dict[str, Any]) -> Any:
        if asked["prompt"] == "w8":
            dead.set()
        if asked["prompt"] == "w7":
            time.sleep(0.1)  # still under way when the next one fails
        elif dead.is_set():
            return 503, {}
        return write(asked)

    server.reply = completing(dying)
    ctx = context(rows(*texts), scratch=tmp_path, progress=Counting())
    with pytest.raises(Unreachable, match=r"it answers 503\. Run again when it answers"):
        step.make(ctx)
    kept = [json.loads(line)[0] for line in (tmp_path / "writing.jsonl").read_text().splitlines()]
    assert 7 in kept
    assert 8 not in kept
    assert 6 <= len(kept) < 20
    before = len(server.asked)
    server.reply = completing(write)
    progress = Counting()
    found = step.make(context(rows(*texts), scratch=tmp_path, progress=progress)).examples
    assert found == calm
    assert len(server.asked) - before == 20 - len(kept)
    assert progress.bars == [["writing", 20, 20]]


def test_what_gave_nothing_is_asked_for_again_when_the_step_goes_on(
    server: Server, tmp_path: Path
) -> None:
    server.reply = completing(lambda asked: "" if asked["prompt"] == "b" else " x")
    prompts = rows("a", "b").examples
    ctx = context(rows(), scratch=tmp_path)
    assert [one and one.text for one in said_after(server.url, prompts, Writing(), Asking(), ctx)] \
        == [" x", None]  # fmt: skip
    server.reply = completing(lambda asked: " late")
    again = said_after(server.url, prompts, Writing(), Asking(), ctx)
    assert [one and one.text for one in again] == [" x", " late"]


def test_one_by_one_is_in_order_and_so_many_at_once(tmp_path: Path) -> None:
    lock, busy, most = threading.Lock(), 0, 0

    def work(item: int, seed: int) -> list[int]:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02 if item == 0 else 0.002)
        with lock:
            busy -= 1
        return [item, seed]

    ctx = context(rows(), scratch=tmp_path)
    found = one_by_one(range(12), work, 4, ctx, "some work")
    assert [item for item, _ in found] == [*range(12)]
    assert len({seed for _, seed in found}) == 12
    assert 1 < most <= 4
    whole = (tmp_path / "some-work.jsonl").read_text()
    (tmp_path / "some-work.jsonl").write_text(whole[:-5])  # killed while writing
    assert one_by_one(range(12), work, 4, ctx, "some work") == found


def test_a_key_is_sent_and_kept_nowhere(server: Server, tmp_path: Path) -> None:
    server.reply = completing(lambda asked: " x")
    step = Generate(teacher=server.url, data="train", server={"key": "TEACHER_KEY"})  # pyright: ignore[reportArgumentType]
    secrets = {"TEACHER_KEY": "sk-very-secret"}
    step.make(context(rows("a"), scratch=tmp_path, secret=secrets.get))
    assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "sk-very" not in (tmp_path / "writing.jsonl").read_text()
    with pytest.raises(UserError, match="TEACHER_KEY, which is not set"):
        step.make(context(rows("a")))


def test_the_judge_is_a_model_at_hand(server: Server) -> None:
    judge = tiny_models.tiny("llama")
    words = [f" w{10 + number}" for number in range(8)]
    server.reply = completing(lambda asked: words[int(asked["prompt"][1:])])
    data = rows(*(f"w{number}" for number in range(8)))
    named: list[str] = []

    def model(name: str, task: Any = None) -> Model:
        named.append(name)
        return judge

    loose = Generate(teacher=server.url, data="train").make(context(data)).examples
    step = Generate(teacher=server.url, data="train", judge="judge", surprise=5.0)
    kept = step.make(context(data, model)).examples
    assert named == ["judge"]
    assert 0 < len(kept) < len(loose) == 8


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Generate, {"texts": 3}, "name a dataset in `data`"),
        (Generate, {"data": "train", "start": 3}, "`start` counts tokens"),
        (Generate, {"data": "train", "beams": 2, "temperature": 0}, "beams: 1"),
        (SequenceLevel, {"beams": 2}, "beams: 1"),
    ],
)
def test_what_no_served_teacher_can_do_is_refused(kind: Any, settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(teacher=ADDRESS, **settings)


def test_a_student_learns_what_a_served_teacher_writes(server: Server) -> None:
    """Prompts are cut to the student's tokens; what comes back has an end where it ended."""
    server.reply = completing(lambda asked: " " + asked["prompt"])
    data = {"train": rows(*tiny_models.texts(6, 10)), "dev": rows(*tiny_models.texts(3, 10, 1))}
    ctx = Context("causal-lm", data.__getitem__, gone)
    student = tiny_models.tiny("llama")
    step = SequenceLevel(
        teacher=server.url, prompt_tokens=4, new_tokens=8, length=16, batch=3, epochs=8,
        learning_rate=1e-2,
    )  # fmt: skip
    step.apply(student, ctx)
    assert {len(asked["prompt"].split()) for asked in server.asked} == {4}
    assert ctx.notes["writing"] == {"stop": 6}
    assert ctx.notes["writing to judge on"] == {"stop": 3}
    losses = [y for _, y in ctx.curves["loss/train"]]
    assert losses[-1] < 0.8 * losses[0]


def test_attar_serves_a_teacher(tmp_path: Path) -> None:
    """A tiny model behind `attar serve`: likeliest answers are its own, drawn ones the seed's."""
    teacher, data = copy.copy(tiny_models.tiny("llama")), rows(*tiny_models.texts(5, 6))
    teacher.tokenizer = copy.deepcopy(teacher.tokenizer)
    teacher.tokenizer.chat_template = TEMPLATE
    save(teacher, tmp_path)
    settings: dict[str, Any] = {"data": "train", "new_tokens": 6}
    with running(Settings(models=(Source(name="writer", path=str(tmp_path)),)), REAL) as server:
        there = {**settings, "teacher": f"{server.url}/v1#writer"}
        asked = Generate(**there, ask="w9 {text}", temperature=0).make(context(data)).examples
        drawn = [Generate(**there).make(context(data, seed=seed)).examples for seed in (0, 0, 1)]
    near = Generate(**settings, ask="w9 {text}", temperature=0)
    assert asked == near.make(context(data, lambda *_: teacher)).examples
    assert len(asked) > 2
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(e.text.startswith(row.text) for e, row in zip(drawn[0], data.examples, strict=True))
