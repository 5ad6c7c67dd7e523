"""The command in a process of its own: ready, drained, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(folder: Path, port: int, *more: str) -> subprocess.Popen[str]:
    """The command; nothing else of this test is as slow as its imports."""
    command = [sys.executable, "-m", "attar", "serve", str(folder), "--port", str(port), *more]
    command += ["--no-export"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_ready(port: int, process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not ready")


def lines(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    _, said = process.communicate(timeout=240)
    return process.returncode, [json.loads(line) for line in said.splitlines()]


@pytest.mark.slow
def test_sigterm_lets_requests_finish_and_a_kill_can_be_followed_by_a_start(
    folders: dict[str, Path],
):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(folders["writer"], port)
    try:
        wait_ready(port, process)
        first = _ask(url)
        answers: list[int] = []
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                try:
                    found = _ask(url)
                except (httpx.TransportError, AssertionError):
                    time.sleep(0.3)
                    continue
                assert found == first
                answers.append(1)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        before = len(answers)
        process.communicate()
        process = start(folders["writer"], port)
        wait_ready(port, process)
        end = time.monotonic() + 30
        while len(answers) < before + 8 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(answers) >= before + 8
        process.send_signal(signal.SIGTERM)
        stop.set()
        for thread in threads:
            thread.join(30)
        code, told = lines(process)
        assert code == 0
        events = [line["event"] for line in told]
        assert events[:2] == ["no export", "listening"]
        assert "model loaded" in events
        assert "draining" in events
        assert events[-1] == "ended"
        assert all(line["status"] in (200, 503) for line in told if line["event"] == "request")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _ask(url: str) -> str:
    answer = httpx.post(
        f"{url}/v1/completions",
        json={"prompt": "w1 w2", "max_tokens": 20, "temperature": 0},
        timeout=20,
    )
    assert answer.status_code == 200
    return answer.json()["choices"][0]["text"]
