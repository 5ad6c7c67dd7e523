"""/v1/embeddings and /classify: texts in, vectors or labels out."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from attar.runtimes.runtime import Floats
from attar.serve.batching import QueueFull, Stopped
from attar.serve.errors import ApiError, busy
from attar.serve.opening import Loaded
from attar.serve.prompts import Input, prompt_ids
from attar.serve.schemas import Classification, Embedding
from attar.serve.service import Service, new_id, now, unless_gone
from attar.serve.settings import Limits
from attar.serve.writing import failed


def routes(service: Service) -> APIRouter:
    """The endpoints."""
    router = APIRouter()

    @router.post("/v1/embeddings", response_model=None)
    async def embeddings(asked: Embedding, request: Request) -> Any:
        """A text's vector, of length one; for one text or several."""
        return await unless_gone(request, _embed(service, request, asked), service)

    @router.post("/classify", response_model=None)
    async def classify(asked: Classification, request: Request) -> Any:
        """The label of a text and the probability of each; for one text or several."""
        return await unless_gone(request, _classify(service, request, asked), service)

    return router


async def _embed(service: Service, request: Request, asked: Embedding) -> Any:
    async with service.pool.use(asked.model) as model:
        rows, count = await _run(service, model, "embedding", asked.input)
        coded = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(row, coded)}
            for index, row in enumerate(rows)
        ]
        return await _told(_list(service, request, model, data, count))


async def _classify(service: Service, request: Request, asked: Classification) -> Any:
    async with service.pool.use(asked.model) as model:
        rows, count = await _run(service, model, "classification", asked.input)
        data: list[dict[str, Any]] = []
        for index, row in enumerate(rows):
            chances = np.exp(row - row.max())
            chances = (chances / chances.sum()).tolist()
            best = int(row.argmax())
            label = model.labels[best] if best < len(model.labels) else str(best)
            data.append(
                {"index": index, "label": label, "probs": chances, "num_classes": len(chances)}
            )
        found = _list(service, request, model, data, count)
        head = {"id": new_id("classify"), "created": now(), "labels": list(model.labels)}
        return await _told({**head, **found})


async def _told(plain: dict[str, Any]) -> Response:
    """As an answer; many vectors take long to write down, and others are served meanwhile."""
    return await asyncio.to_thread(JSONResponse, plain)


async def _run(
    service: Service, model: Loaded, task: str, given: Input
) -> tuple[list[Floats], int]:
    """The answer to every text, and how many tokens they have together. Raises ApiError."""
    if model.task != task or model.encoder is None:
        raise ApiError(400, f"{model.name} is for {model.task}, not for {task}", None, "model")
    limits = service.settings.limits
    texts = await prompt_ids(model, given, limits.texts, "input")
    try:
        futures = model.encoder.submit(texts)
    except QueueFull as error:
        raise busy(f"{error}; try again in a moment", "queue_full", 429) from None
    except Stopped as error:
        raise busy(str(error), "unavailable") from None
    rows = await _wait(futures, limits)
    service.metrics.texts.labels(model.name).inc(len(texts))
    return rows, sum(map(len, texts))


async def _wait(futures: Any, limits: Limits) -> list[Floats]:
    try:
        async with asyncio.timeout(limits.seconds):
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
    except TimeoutError:
        raise ApiError(
            504, f"the texts were not done within {limits.seconds:g} s", "timeout"
        ) from None
    except Exception as error:  # whatever a model raises
        told = failed(error, "text")
        raise told from told.__cause__  # none where the model is only being unloaded
    finally:
        for future in futures:
            future.cancel()


def _vector(row: Floats, coded: bool) -> Any:
    if coded:
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()


def _list(
    service: Service, request: Request, model: Loaded, data: list[dict[str, Any]], count: int
) -> dict[str, Any]:
    counts = service.usage(request, model.name, count, 0)
    usage = {name: counts[name] for name in ("prompt_tokens", "total_tokens")}
    return {"object": "list", "model": model.name, "data": data, "usage": usage}
