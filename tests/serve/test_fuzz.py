"""Whatever the description allows, and much that it does not: never a 500."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error

from serve.fakes import Running, running
from serve.fakes import settings as fakes

EXAMPLES = 15


def test_the_description_holds(echo: Running):
    schema = schemathesis.openapi.from_url(f"{echo.url}/openapi.json")
    paths = set(schema.raw_schema["paths"])
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/classify",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= paths
    text = str(schema.raw_schema)
    assert "'422'" not in text
    assert "HTTPValidationError" not in text


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_makes_a_server_error(mode: schemathesis.GenerationMode):
    limits = {"context": 64, "tokens": 16}
    with running(fakes("echo", "kinds", "vectors", limits=limits)) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            # what takes nothing cannot be asked wrongly
            with suppress(*[Unsatisfiable] if operation.method == "get" else ()):
                _fuzz(operation.as_strategy(generation_mode=mode))
        assert server.idle()


def _fuzz(cases: Any) -> None:
    @given(cases)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def one(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=[not_a_server_error])

    one()
