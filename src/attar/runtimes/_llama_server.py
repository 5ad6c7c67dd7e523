"""llama.cpp's own server within the process: how it is started, asked and let go."""

from __future__ import annotations

import json
import secrets
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from attar.errors import AttarError, ModelError


class LlamaServer:
    """llama.cpp's own server, which is called within the process."""

    engine = "llama-cpp"
    _server: Any
    _key: str

    def _start(
        self, path: Path, threads: int | None, room: tuple[int, int], pooling: str | None = None
    ) -> None:
        """Load a file; `room` is how many tokens a text may have, and how many texts.

        `pooling` of an encoder is llama.cpp's name of it, UNSPECIFIED where the file says which.
        """
        self._key = secrets.token_hex()
        self._server = _server(path, threads, room, self._key, pooling)

    def tokens(self, text: str) -> list[int] | None:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False})
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            body.encode(),
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        # to this machine alone, and so past every proxy
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["tokens"]

    def close(self) -> None:
        self._server = None


def checked(answer: Any) -> Any:
    """An answer that is none of its errors; raises AttarError for these."""
    if isinstance(answer, Exception):
        raise AttarError(f"llama.cpp failed: {answer}") from answer
    error = answer.get("error") or (answer if "code" in answer else None)
    if error:
        raise AttarError(f"llama.cpp refused: {error.get('message', error)}")
    return answer


def _server(
    path: Path, threads: int | None, room: tuple[int, int], key: str, pooling: str | None
) -> Any:
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = room[0] * room[1], room[1]
    if pooling is not None:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{pooling}"]
        params.n_batch = params.n_ubatch = room[0] * room[1]  # a text is never run in parts
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if pooling is None and room[1] > 1:  # flash attention of a prompt depends on what else is read
        kinds = xllamacpp.llama_flash_attn_type
        params.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers, params.fit_params, params.verbosity = 0, False, 0
    params.cache_ram_mib, params.n_ctx_checkpoints = 0, 0  # one text at a time: nothing to keep
    # it listens on a port of this machine, whether one wants that or not
    params.api_keys, params.endpoint_slots, params.ui = [key], False, False
    params.endpoint_metrics = True
    try:
        with _own_signals():
            server = xllamacpp.Server(params)
            server.handle_metrics()  # let go before its queue has run a task, it would never end
            return server
    except Exception as error:
        raise ModelError(f"llama.cpp does not load {path}: {error}") from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what is to happen at Ctrl-C and at SIGTERM, which the server takes for itself."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, signal.SIG_DFL if handler is None else handler)
