"""Servers and trackers for the tests of `finetune.tracking`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finetune.tracking.tracked_run import TrackedRun
from finetune.tracking.tracker import Results, Tracker


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def web_server(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything with one status; its address, and the requests that it has had."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Recorder(Tracker):
    """Keeps what it is told; raises in the methods that are named, or waits there."""

    label = "Recorder"

    def __init__(self, broken: tuple[str, ...] = (), slow: threading.Event | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.broken, self.slow, self.reachable = broken, slow, True

    def _record(self, name: str, *values: Any) -> None:
        if self.slow is not None:
            self.slow.wait(30)
        if name in self.broken or not self.reachable:
            raise RuntimeError(f"no {name} today")
        self.calls.append((name, *values))

    def is_reachable(self) -> bool:
        return self.reachable

    def start(self, run: TrackedRun) -> int | None:
        self._record("start", run.name)
        return 0

    def describe(self) -> str:
        return "look here"

    def log_epoch(self, row: Mapping[str, float]) -> None:
        self._record("epoch", dict(row))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._record("metrics", dict(metrics), step)

    def log_results(self, results: Results) -> None:
        self._record("results", results.metrics)

    def finish(self, status: str) -> None:
        self._record("finish", status)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def make_tracked_run(folder: Path, **options: Any) -> TrackedRun:
    folder.mkdir(parents=True, exist_ok=True)
    return TrackedRun(folder, {"model": {"name": "resnet18"}, "seed": 0}, {"model": "resnet18"}, **options)
