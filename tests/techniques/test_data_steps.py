"""Steps that make data: what is written is what was meant, and the teacher's filter filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import data_steps
import tiny_models
from attar.core.context import Context
from attar.core.recipe import ModelSource
from attar.data.batches import held_out
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models.model import Model
from attar.models.translator import open_translator, translator_problem
from attar.techniques.adapt.full import Full
from attar.techniques.data._variants import VariantsStep, by_pieces
from attar.techniques.data.generate import Generate
from attar.techniques.data.label import Label
from attar.techniques.data.mlm import Mlm, _Filling
from attar.techniques.data.synonyms import SynonymsStep
from attar.train.asking import Asked
from attar.train.losses import Objective


def rows(*texts: str, label: str | None = None) -> Dataset:
    return Dataset("train", [Example(text, label) for text in texts], "f", tiny_models.LABELS)


def context(data: Dataset, model: Model | None = None, task: Any = "classification") -> Context:
    return Context(task, lambda _: data, lambda *_: model)


def probabilities(model: Model, text: str) -> torch.Tensor:
    """The classes of one text, alone."""
    given = model.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return model.module(input_ids=given.input_ids).logits[0].double().softmax(-1)


class Shouting(VariantsStep, kind="data/shouting"):
    """A step for the tests: two variants of every text."""

    def make(self, ctx: Context) -> Dataset:
        """The rows and their variants."""
        return self.grown(
            ctx, lambda texts, _: [[t, f"{t} w1", f"{t} w1", f"{t} w2"] for t in texts]
        )


def test_variants_stand_after_their_rows_and_have_their_labels() -> None:
    ctx = context(rows("w3", "w4", label="good"))
    made = Shouting().make(ctx)
    assert [(e.text, e.label) for e in made.examples] == [
        (text, "good") for text in ("w3", "w3 w1", "w3 w2", "w4", "w4 w1", "w4 w2")
    ]
    assert ctx.notes == {"read": 2, "written": 4, "variants": 4, "kept": 1.0}
    alone = Shouting(originals=False).make(ctx)
    assert [e.text for e in alone.examples] == ["w3 w1", "w3 w2", "w4 w1", "w4 w2"]


@pytest.mark.parametrize("label", [None, "bad", "good", "mixed"])
def test_a_variant_is_kept_where_the_teacher_is_sure_of_the_class(label: str | None) -> None:
    teacher = tiny_models.tiny("bert", "classification")
    data = rows(*tiny_models.texts(12, 6), label=label)
    step = Shouting(teacher="original", confidence=0.5, batch=5, originals=False)
    wanted: list[str] = []
    for example in data.examples:
        own = probabilities(teacher, example.text)
        place = int(own.argmax()) if label is None else teacher.labels.index(label)
        for text in (f"{example.text} w1", f"{example.text} w2"):
            found = probabilities(teacher, text)
            wanted += [text] * (int(found.argmax()) == place and float(found[place]) >= 0.5)
    ctx = context(data, teacher)
    assert [e.text for e in step.make(ctx).examples] == wanted
    assert ctx.notes["kept"] == pytest.approx(len(wanted) / 24)


def test_of_language_models_a_variant_may_be_a_little_less_likely() -> None:
    teacher = tiny_models.tiny("llama")
    data = rows(*tiny_models.texts(6, 6))
    ctx = context(data, teacher, "causal-lm")
    asked = Asked(teacher, ctx, 4, 128)
    wanted = [
        text
        for example in data.examples
        for text in (f"{example.text} w1", f"{example.text} w2")
        if asked.nats([text])[0] - asked.nats([example.text])[0] <= 0.1
    ]
    step = Shouting(teacher="original", surprise=0.1, originals=False)
    assert [e.text for e in step.make(ctx).examples] == wanted
    assert 0 < len(wanted) < 12


def test_teachers_of_other_classes_are_refused() -> None:
    teacher = tiny_models.tiny("bert", "classification")
    with pytest.raises(UserError, match="and the data has strange"):
        Shouting(teacher="original").make(context(rows("w1", label="strange"), teacher))
    with pytest.raises(UserError, match="masked language model"):
        Shouting(teacher="original").make(context(rows("w1"), teacher, "masked-lm"))


def test_chats_have_no_variants() -> None:
    chat = Example("user: x", messages=({"role": "user", "content": "x"},))
    data = Dataset("train", [Example("w1"), chat], "f")
    ctx = context(data, task="causal-lm")
    assert [e.text for e in Shouting().make(ctx).examples] == ["w1", "w1 w1", "w1 w2", "user: x"]
    assert "1 rows are chat messages" in ctx.warnings[0]


def test_long_texts_go_in_pieces_and_come_back_whole() -> None:
    seen: list[int] = []

    def vary(texts: Any, seed: int) -> list[list[str]]:
        seen.extend(len(text) for text in texts)
        return [[text.upper(), text.strip()] for text in texts]

    text = "one two three\nfour five six " * 20
    (found,) = by_pieces(vary, 16)([text], 0)
    assert found == [text.upper(), text]
    assert len(seen) > 5
    assert max(seen) <= 48


def test_synonyms_replace_only_words_that_have_some(tmp_path: Path) -> None:
    path = data_steps.synonyms(tmp_path)
    data = rows("Good ax, w5 and bad!", "w7 w8")
    step = SynonymsStep(words=str(path), variants=20, share=0.3, originals=False)
    made = {e.text for e in step.make(context(data)).examples}
    goods, numbers, bads = ("Good", "Gooder"), ("ax", "bx", "cx"), ("bad", "bader")
    assert made <= {f"{a} {b}, w5 and {c}!" for a in goods for b in numbers for c in bads}
    assert len(made) > 4
    always = SynonymsStep(words=str(path), variants=9, share=1.0, originals=False)
    assert {e.text for e in always.make(context(data)).examples} == {
        "Gooder bx, w5 and bader!",
        "Gooder cx, w5 and bader!",
    }


def test_the_share_is_that_of_words_replaced(tmp_path: Path) -> None:
    data = rows(" ".join(["ax"] * 2000))
    step = SynonymsStep(words=str(data_steps.synonyms(tmp_path)), variants=1, share=0.25)
    changed = step.make(context(data)).examples[1].text.split()
    assert sum(word != "ax" for word in changed) / 2000 == pytest.approx(0.25, abs=0.04)


def candidates(model: Model, words: list[str], at: int, count: int) -> list[str]:
    """The likeliest words where one is masked, by a pass of its own in float64."""
    tokenizer = model.tokenizer
    ids = tokenizer(" ".join(words), return_tensors="pt").input_ids
    own = int(ids[0, at + 1])
    ids[0, at + 1] = tokenizer.mask_token_id
    with torch.no_grad():
        order = model.module(input_ids=ids).logits[0, at + 1].double().argsort(descending=True)
    found = [tokenizer.decode([int(token)]) for token in order if int(token) != own]
    return [word for word in found if word.isalnum()][:count]


def test_masked_words_get_the_likeliest_of_their_place() -> None:
    model = tiny_models.tiny("bert")
    words = ["w3", "w40", "w5", "w61"]
    filling = _Filling(model, context(rows()), 3, 32, 4, None)
    found = filling.words([" ".join(words)])
    (known,) = filling.candidates_of([" ".join(words)], found, [[0, 1, 2, 3]])
    assert known == {at: candidates(model, words, at, 4) for at in range(4)}


def test_mlm_replaces_the_share_and_leaves_the_rest() -> None:
    model = tiny_models.tiny("bert")
    texts = [f"{text} ,  {text}" for text in tiny_models.texts(20, 8)]
    ctx = context(rows(*texts), model)
    step = Mlm(variants=5, share=0.4, originals=False, batch=7)
    changed = total = 0
    made = step.make(ctx).examples
    sources = {text: text.replace(",", "").split() for text in texts}
    for example in made:
        assert " ,  " in example.text
        new = example.text.replace(",", "").split()
        old = min(sources.values(), key=lambda s: sum(a != b for a, b in zip(s, new, strict=True)))
        changed += sum(a != b for a, b in zip(old, new, strict=True))
        total += len(new)
    assert changed / total == pytest.approx(0.4, abs=0.05)


def test_words_of_several_tokens_take_their_neighbors(tmp_path: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "up", "##ward", "side", "top"]
    plain = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )
    model = tiny_models.tiny("bert")
    model.tokenizer = tokenizer
    (tmp_path / "v.txt").write_text("upward 0 1\nskyward 0 2\ndown 0 -1\nside 1 0\n", "utf-8")
    step = Mlm(
        variants=30, share=0.5, candidates=90, originals=False, vectors=str(tmp_path / "v.txt")
    )
    made = {e.text for e in step.make(context(rows("Upward side"), model)).examples}
    assert {text.split()[0] for text in made} == {"Upward", "Skyward", "Side", "Down"}
    assert all(text.split()[1] in ("up", "top", "side") for text in made)  # no ##ward
    without = Mlm(variants=30, share=0.5, candidates=90, originals=False)
    made = {e.text for e in without.make(context(rows("Upward side"), model)).examples}
    assert {text.split()[0] for text in made} == {"Upward"}


def test_back_translation_is_one_model_after_the_other(tmp_path: Path) -> None:
    paths = [data_steps.translator(tmp_path / name, at) for at, name in enumerate("ab")]
    from attar.techniques.data.back_translation import BackTranslation

    step = BackTranslation(
        there=str(paths[0]), back=str(paths[1]), temperature=0, beams=1, length=12, originals=False
    )
    texts = tiny_models.texts(5, 6)
    made = [e.text for e in step.make(context(rows(*texts))).examples]
    wanted: list[str] = []
    for text in texts:
        for path in paths:
            text = greedy(path, text, 12)
        wanted.append(text)
    assert made == [text for text in wanted if text]
    assert made


def test_a_model_of_many_languages_is_told_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attar.techniques.data.back_translation import BackTranslation

    path = str(data_steps.many_languages(tmp_path / "nllb"))
    seen: list[tuple[int, int]] = []

    def opened(*given: Any) -> Any:
        model = open_translator(*given)
        generate = model.module.generate

        def watched(input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
            made = generate(input_ids=input_ids, **how)
            seen.append((int(input_ids[0, 0]), int(made[0, 1])))
            return made

        monkeypatch.setattr(model.module, "generate", watched)
        return model

    monkeypatch.setattr("attar.techniques.data.back_translation.open_translator", opened)
    told = BackTranslation(
        there=path, back=path, temperature=0, length=12, languages=("eng_Latn", "fra_Latn")
    )
    told.make(context(rows("ab cd")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    english, french = tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn"])
    assert seen == [(english, french), (french, english)]
    assert list(told.check([])) == []


def test_languages_that_a_model_is_not_told_or_does_not_know_are_refused_in_the_plan(
    tmp_path: Path,
) -> None:
    from attar.techniques.data.back_translation import BackTranslation

    many = str(data_steps.many_languages(tmp_path / "nllb"))
    marian = str(data_steps.translator(tmp_path / "marian", 0))
    known = ("eng_Latn", "fra_Latn")
    for there, languages, words in (
        (many, None, "translates between many languages"),
        (many, ("en", "fra_Latn"), "knows no language 'en'"),
        (marian, known, "not told languages"),
    ):
        step = BackTranslation(there=there, back=many, length=12, languages=languages)
        problem = next(iter(step.check([])))
        assert problem.startswith(f"`there` {there} ")
        assert words in problem
        with pytest.raises(UserError, match=words):
            step.make(context(rows("ab")))


def test_a_model_is_told_in_words_what_to_do(tmp_path: Path) -> None:
    from attar.techniques.data.back_translation import BackTranslation

    paths = [str(data_steps.translator(tmp_path / name, at)) for at, name in enumerate("ab")]
    step = BackTranslation(
        there=paths[0], back=paths[1], temperature=0, length=12, originals=False, beams=1
    )
    texts = tiny_models.texts(3, 4)
    told = step.model_copy(update={"prefixes": ("w1 ", "w2 ")})
    wanted = [greedy(Path(paths[0]), "w1 " + text, 12) for text in texts]
    wanted = [greedy(Path(paths[1]), "w2 " + text, 12) for text in wanted]
    assert [e.text for e in told.make(context(rows(*texts))).examples] == [t for t in wanted if t]


def greedy(path: Path, text: str, count: int) -> str:
    """What a translator writes, one whole forward pass a token."""
    ways = open_translator(ModelSource(path=str(path)), "cpu")
    given = {"truncation": True, "max_length": count, "return_tensors": "pt"}
    ids = ways.tokenizer(text, **given).input_ids
    found = [0]
    while len(found) <= count and found[-1] != 5:
        with torch.no_grad():
            logits = ways.module(input_ids=ids, decoder_input_ids=torch.tensor([found])).logits
        logits[..., 0] = -float("inf")  # Marian never writes what it pads with
        found.append(int(logits[0, -1].argmax()))
    return ways.tokenizer.decode(found, skip_special_tokens=True).strip()


def test_a_decoder_is_no_translator(tmp_path: Path) -> None:
    from attar.models import save

    save(tiny_models.tiny("llama"), tmp_path / "llama")
    problem = translator_problem(ModelSource(path=str(tmp_path / "llama")))
    assert problem is not None
    assert "no sequence-to-sequence model" in problem
    marian = data_steps.translator(tmp_path / "marian", 0)
    assert translator_problem(ModelSource(path=str(marian))) is None


def test_texts_from_nothing_and_from_prompts() -> None:
    teacher = tiny_models.tiny("llama")
    ctx = context(rows("w1 w2", "w3", label="good"), teacher)
    made = Generate(texts=5, new_tokens=6).make(ctx)
    assert 0 < len(made.examples) <= 5
    assert all(e.label is None for e in made.examples)
    made = Generate(data="train", texts=6, new_tokens=6).make(ctx)
    assert all(e.text.startswith(("w1 w2", "w3")) and e.label == "good" for e in made.examples)
    assert len({e.text for e in made.examples}) == len(made.examples)
    made = Generate(data="train", start=2, texts=1, new_tokens=6).make(ctx)
    assert made.examples[0].text.startswith("w1 w2")


def test_what_is_asked_is_no_part_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_models.tiny("llama")
    teacher.tokenizer = chatty()
    seen: list[str] = []

    def write(model: Any, prompts: Any, *_: Any) -> list[list[int]]:
        seen.extend(model.tokenizer.batch_decode(prompts))
        return [[10, 11, 5], [], [10] * 30]  # w4 w5, nothing, a loop

    monkeypatch.setattr("attar.techniques.data.generate.write_after", write)
    data = rows("w1 w2", "w6", "w7", label="good")
    ctx = context(data, teacher)
    made = Generate(data="train", ask="w30 {label} w31 {text}").make(ctx)
    assert [(e.text, e.label) for e in made.examples] == [("w4 w5", "good")]
    assert seen[0].split() == ["w50", "w30", "[UNK]", "w31", "w1", "w2", "w51"]
    assert ctx.notes["kept"] == pytest.approx(1 / 3)


def chatty() -> Any:
    import copy

    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}w50 {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w51{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_judge_of_what_is_written(task: Any) -> None:
    teacher = tiny_models.tiny("llama")
    judge = tiny_models.tiny("bert", "classification") if task == "classification" else teacher
    data = rows(*tiny_models.texts(8, 4), label="good")

    def model(name: str, wanted: Any = None) -> Model:
        return judge if name == "judge" else teacher

    ctx = Context(task, lambda _: data, model)
    written = Generate(data="train", texts=16, new_tokens=4).make(ctx).examples
    step = Generate(
        data="train", texts=16, new_tokens=4, judge="judge", confidence=0.4, surprise=5.0
    )
    kept = [e.text for e in step.make(ctx).examples]
    if task == "causal-lm":
        asked = Asked(judge, ctx, 1, 256)
        assert kept == [e.text for e in written if asked.nats([e.text])[0] <= 5.0]
    else:
        good = judge.labels.index("good")
        given = [(e.text, probabilities(judge, e.text)) for e in written]
        assert kept == [t for t, p in given if int(p.argmax()) == good and float(p[good]) >= 0.4]
    assert len(kept) < len(written)


def test_labels_are_the_classifiers_with_confidence() -> None:
    teacher = tiny_models.tiny("bert", "classification")
    data = rows(*tiny_models.texts(20, 6), label="good")
    ctx = context(data, teacher)
    made = Label(confidence=0.6, probabilities=True, batch=6).make(ctx)
    wanted = [(e.text, probabilities(teacher, e.text)) for e in data.examples]
    sure = [(text, p) for text, p in wanted if float(p.max()) >= 0.6]
    assert [(e.text, e.label) for e in made.examples] == [
        (text, teacher.labels[int(p.argmax())]) for text, p in sure
    ]
    for example, (_, p) in zip(made.examples, sure, strict=True):
        assert example.probabilities == pytest.approx(
            dict(zip(teacher.labels, p.tolist(), strict=True)), abs=1e-5
        )
    agreed = sum(teacher.labels[int(p.argmax())] == "good" for _, p in wanted) / 20
    assert ctx.notes["agrees with labels"] == pytest.approx(agreed)
    assert 0 < ctx.notes["kept"] < 1


def test_a_student_of_other_tokens_learns_the_probabilities_of_each_class() -> None:
    """The loss is KL(given || student) over the rows that came with something, in float64."""
    student = tiny_models.tiny("bert", "classification")
    names = student.labels
    drawn = torch.rand(24, len(names), generator=torch.Generator().manual_seed(0)).softmax(-1)
    rows = [
        Example(text, None, probabilities=dict(zip(names, shares, strict=True)))
        for text, shares in zip(tiny_models.texts(24, 12), drawn.tolist(), strict=True)
    ]
    rows += [Example("w1 w2", names[1]), Example("w3 w4")]
    data = Dataset("train", rows, "", names)
    (batch,) = held_out(data, student.tokenizer, "classification", 16, 26, None, names)
    loss = Objective(student)(batch, 0.0)
    given = torch.cat([drawn.double(), torch.eye(len(names)).double()[1:2]])
    with torch.no_grad():
        known = student.logits(batch)[:-1].double().log_softmax(-1)
    wanted = (torch.xlogy(given, given) - given * known).sum(1).mean()
    assert loss.count == 25
    assert float(loss.value.detach()) == pytest.approx(float(wanted), rel=1e-5)
    ctx = Context("classification", lambda _: data, lambda *_: student)
    Full(steps=40, batch=8, length=16, learning_rate=3e-3, held_out=None).apply(student, ctx)
    assert float(Objective(student)(batch, 0.0).value.detach()) < float(wanted) / 2


def test_rows_beside_keep_their_labels() -> None:
    teacher = tiny_models.tiny("bert", "classification")
    data = {"pool": rows("w1 w2"), "train": rows("w8", label="mixed")}
    ctx = Context("classification", data.__getitem__, lambda *_: teacher)
    made = Label(data="pool", beside="train").make(ctx)
    assert made.examples[0] == Example("w8", "mixed")
    assert made.examples[1].text == "w1 w2"


def test_a_language_model_labels_by_what_it_would_answer() -> None:
    """By the probabilities of the answers, their means over all rows divided out; in float64."""
    teacher = tiny_models.tiny("llama")
    data = rows(*tiny_models.texts(30, 5))
    classes = ("w20", "w21 w22", "w23")
    step = Label(ask="w50 {text} w51", classes=classes, probabilities=True, batch=4)
    made = step.make(context(data, teacher, "causal-lm"))

    def answers(text: str) -> torch.Tensor:
        before = teacher.tokenizer(f"w50 {text} w51", add_special_tokens=False).input_ids
        found: list[float] = []
        for name in classes:
            after = teacher.tokenizer(name, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = teacher.module(input_ids=torch.tensor([before + after])).logits[0]
            known = logits.double().log_softmax(-1)
            found.append(sum(float(known[len(before) - 1 + k, t]) for k, t in enumerate(after)))
        return torch.tensor(found).double().softmax(-1)

    every = torch.stack([answers(source.text) for source in data.examples])
    wanted = every / every.mean(0)
    wanted /= wanted.sum(1, keepdim=True)
    for example, shares in zip(made.examples, wanted, strict=True):
        assert example.label == classes[int(shares.argmax())]
        assert example.probabilities is not None
        assert list(example.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Label, {"ask": "what is it?", "classes": ["a", "b"]}, r"must have \{text\} in it"),
        (Label, {"ask": "{text}"}, "go together"),
        (Label, {"ask": "{text}", "classes": ["a"]}, "two or more"),
        (Generate, {}, "how many texts"),
        (Generate, {"texts": 3, "ask": "x"}, "name a dataset in `data`"),
        (Generate, {"data": "train", "ask": "x", "start": 3}, "keep one"),
    ],
)
def test_settings_that_do_not_fit(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**settings)


def test_a_run_of_chats_alone_has_none_either() -> None:
    """A masked language model is put nothing before."""
    chat = Example("user: x", messages=({"role": "user", "content": "x"},))
    data = Dataset("train", [Example("w1 w2"), Example("w3 w4"), chat, chat], "f")
    ctx = context(data, tiny_models.tiny("bert"), "causal-lm")
    step = Mlm(batch=2, originals=False, share=1.0, variants=1)
    variants = step.make(ctx).examples
    assert [len(example.text.split()) for example in variants] == [2, 2]
    assert not any(example.messages for example in variants)
    assert "2 rows are chat messages" in ctx.warnings[0]


def test_few_rows_do_not_tell_what_a_teacher_leans_to() -> None:
    teacher = tiny_models.tiny("llama")
    texts, classes = tiny_models.texts(30, 5), ("w20", "w21 w22", "w23")

    def made(count: int, **settings: Any) -> tuple[list[Example], list[str]]:
        ctx = context(rows(*texts[:count]), teacher, "causal-lm")
        step = Label(ask="w50 {text} w51", classes=classes, probabilities=True, **settings)
        return step.make(ctx).examples, ctx.warnings

    (one,), said = made(1)
    two, _ = made(2)
    assert one.probabilities == pytest.approx(two[0].probabilities)
    assert "1 rows are too few" in said[0]
    assert not made(30)[1]


def test_a_question_that_is_longer_than_the_teachers_positions_is_refused() -> None:
    teacher = tiny_models.tiny("gpt2", max_position_embeddings=32)
    ctx = context(rows("w1 " * 60), teacher, "causal-lm")
    with pytest.raises(UserError, match=r"and the teacher has 32 positions. Lower `length`"):
        Label(ask="w50 {text} w51", classes=("w20", "w21")).make(ctx)


def test_texts_are_translated_in_pieces_that_have_positions(tmp_path: Path) -> None:
    from attar.techniques.data.back_translation import BackTranslation

    paths = [str(data_steps.translator(tmp_path / name, at)) for at, name in enumerate("ab")]
    ctx = context(rows(" ".join(tiny_models.texts(12, 12))))
    step = BackTranslation(there=paths[0], back=paths[1], length=512, originals=False)
    step.make(ctx)  # 64 positions, 144 words
