"""A page to try the models: one file, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from attar.serve.service import Service

_FILE = Path(__file__).with_name("page.html")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(service: Service) -> APIRouter:
    """The page, at the root."""
    router = APIRouter()
    text = _FILE.read_text("utf-8")

    @router.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(text, media_type="text/html; charset=utf-8", headers=headers)

    return router
