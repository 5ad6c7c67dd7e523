"""Models are loaded on demand, within the budget, and the one that was idle longest goes."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

from attar.errors import ModelError, UserError
from attar.serve.errors import ApiError
from attar.serve.models import Pool
from attar.serve.settings import Settings, Source
from serve.fakes import opener, settings


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through all that a test run has made takes seconds."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def pool(*names: str, memory: int | None = 250, open_: Any = None, **limits: Any) -> Pool:
    """Every model takes 100 bytes."""
    return Pool(settings(*names, memory=memory, limits=limits), open_ or opener(), lambda _: 100)


async def touch(models: Pool, name: str | None) -> str:
    async with models.use(name) as model:
        return model.name


def test_the_longest_idle_makes_room():
    async def story() -> None:
        models = pool("a", "b", "c")
        await models.start()
        assert list(models.loaded()) == ["a", "b"]
        await touch(models, "b")
        await touch(models, "a")
        assert await touch(models, "c") == "c"
        assert list(models.loaded()) == ["a", "c"]
        assert await touch(models, None) == "a"
        await models.close()
        assert not models.loaded()

    asyncio.run(story())


def test_a_model_in_use_stays():
    async def story() -> None:
        models = pool("a", "b", "c", memory=200, queue_seconds=1.5)
        await models.start()
        async with models.use("a"), models.use("b"):
            with pytest.raises(ApiError) as refused:
                await touch(models, "c")
            assert refused.value.status == 503
            assert list(models.loaded()) == ["a", "b"]
        assert await touch(models, "c") == "c"
        await models.close()

    asyncio.run(story())


def test_one_that_waits_for_room_gets_it():
    async def story() -> None:
        models = pool("a", "b", memory=100)
        await models.start()
        async with models.use("a"):
            waits = asyncio.create_task(touch(models, "b"))
            await asyncio.sleep(0.05)
            assert not waits.done()
        assert await waits == "b"
        await models.close()

    asyncio.run(story())


def test_several_that_want_the_same_room_get_it_one_after_another():
    async def story() -> None:
        models = pool("a", "b", "c", "d", memory=100, queue_seconds=60)
        await models.start()
        names = ["b", "c", "d", "a"] * 5
        assert await asyncio.gather(*(touch(models, name) for name in names)) == names
        assert len(models.loaded()) == 1
        await models.close()

    asyncio.run(story())


def test_one_that_failed_gives_its_room_back():
    make = opener()

    def broken(source: Source, given: Settings) -> Any:
        if source.name == "b":
            raise ModelError("the weights are damaged")
        return make(source, given)

    async def story() -> None:
        models = pool("a", "b", "c", memory=100, open_=broken, queue_seconds=60)
        await models.start()
        found = await asyncio.gather(
            *(touch(models, name) for name in "bcbcba"), return_exceptions=True
        )
        assert [str(each) for each in found if isinstance(each, str)] == ["c", "c", "a"]
        await models.close()

    asyncio.run(story())


def test_many_who_ask_at_once_load_it_once_and_one_who_leaves_stops_nothing():
    opened: list[str] = []
    make = opener()

    def slow(source: Source, given: Settings) -> Any:
        time.sleep(0.1)
        opened.append(source.name)
        return make(source, given)

    async def story() -> None:
        models = pool("a", "b", open_=slow, memory=None)
        asks = [asyncio.create_task(touch(models, "b")) for _ in range(8)]
        await asyncio.sleep(0.02)
        asks[0].cancel()
        found = await asyncio.gather(*asks, return_exceptions=True)
        assert found[1:] == ["b"] * 7
        assert opened == ["b"]
        await models.close()

    asyncio.run(story())


@pytest.mark.parametrize("error", [ModelError("it is damaged"), RuntimeError("bad header")])
def test_a_model_that_does_not_load_is_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    """But not at once: others would be unloaded for it at every request."""
    make, tries = opener(), []
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def broken(source: Source, given: Settings) -> Any:
        tries.append(source.name)
        if len(tries) == 1:
            raise error
        return make(source, given)

    async def story() -> None:
        models = pool("a", open_=broken)
        for _ in range(3):
            with pytest.raises(ApiError) as refused:
                await touch(models, "a")
            assert (refused.value.status, refused.value.code) == (503, "model_failed")
            assert len(tries) == 1
            clock[0] += 14.0
        assert await touch(models, "a") == "a"
        await models.close()

    asyncio.run(story())


def test_a_name_that_is_not_there():
    async def story() -> None:
        with pytest.raises(ApiError, match="there is no model 'z'; there are a, b") as refused:
            await touch(pool("a", "b"), "z")
        assert refused.value.status == 404

    asyncio.run(story())


def test_what_never_fits_is_refused_before_anything_loads():
    with pytest.raises(UserError, match="Raise --memory"):
        pool("a", memory=99)
    with pytest.raises(UserError, match="two models are called 'a'"):
        pool("a", "a")
