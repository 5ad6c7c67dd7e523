"""The application: every path, and what stands before them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response

from attar import __version__
from attar.serve import chat, completions, encoding, page
from attar.serve.auth import Keys
from attar.serve.errors import ApiError, install
from attar.serve.limits import Door, Gate
from attar.serve.log import log
from attar.serve.metrics import Metrics
from attar.serve.models import Pool
from attar.serve.service import Service, now
from attar.serve.settings import Settings

_ERRORS = {
    400: "the request makes no sense",
    401: "no API key, or an unknown one",
    403: "asked by somebody else's page",
    404: "no such model",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body is said to be no JSON",
    429: "too many wait",
    503: "not ready, full, or about to end",
    504: "not done in time",
}
_SHAPE: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _SHAPE}}}
    for status, text in _ERRORS.items()
}


def create_app(
    settings: Settings,
    pool: Pool | None = None,
    failed: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The server as an ASGI application. `failed` is told when a model does not load at first."""
    pool = pool or Pool(settings)
    service = Service(settings, pool, Metrics(pool), Gate())
    app = FastAPI(
        title="Attar",
        version=__version__,
        lifespan=_life(pool, failed),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_RESPONSES,
    )
    app.state.service = service
    install(app)
    for routes in (_health, _models, chat.routes, completions.routes, encoding.routes, page.routes):
        app.include_router(routes(service))
    app.add_middleware(
        Door,  # pyright: ignore[reportArgumentType]
        limits=settings.limits,
        keys=Keys(settings.keys, settings.anyone),
        gate=service.gate,
        metrics=service.metrics,
    )
    _without_422(app)
    return app


def _life(pool: Pool, failed: Callable[[BaseException], None]) -> Any:
    """Load the first models while the server listens already, and unload all at the end."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async def start() -> None:
            try:
                await pool.start()
            except Exception as error:  # the command says it, and ends
                log("not started", logging.ERROR, reason=str(error))
                failed(error)

        starting = asyncio.create_task(start())
        try:
            yield
        finally:
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            await pool.close()

    return life


def _health(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "alive"}

    @router.get("/readyz", response_model=None)
    async def readyz() -> Response:
        """Whether requests would be answered: 503 while loading, and before the end."""
        if service.gate.draining:
            return JSONResponse({"status": "draining"}, 503, {"Retry-After": "5"})
        if not service.pool.ready:
            return JSONResponse({"status": "loading"}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def _models(service: Service) -> APIRouter:
    router, created = APIRouter(), now()

    def describe(name: str) -> dict[str, Any]:
        source = next((each for each in service.pool.sources if each.name == name), None)
        if source is None:
            raise ApiError(404, f"there is no model {name!r}", "model_not_found", "model")
        loaded = service.pool.loaded().get(name)
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "attar",
            "original": source.original,
            "loaded": loaded is not None,
            "task": service.pool.task_of(name),
            "engine": loaded.engine if loaded else source.engine,
            "max_model_len": loaded.context if loaded else None,
        }

    @router.get("/v1/models", response_model=None)
    async def models() -> Any:
        """What is served."""
        found = [describe(source.name) for source in service.pool.sources]
        return {"object": "list", "data": found}

    @router.get("/v1/models/{name:path}", response_model=None)
    async def model(name: str) -> Any:
        """One model."""
        return describe(name)

    return router


def _without_422(app: FastAPI) -> None:
    """Leave FastAPI's own errors out of the description: they are sent as 400."""
    make = app.openapi

    def describe() -> dict[str, Any]:
        plain = make()
        for methods in plain["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            plain["components"]["schemas"].pop(name, None)
        return plain

    app.openapi = describe
