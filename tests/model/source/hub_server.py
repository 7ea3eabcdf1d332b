"""A server that answers what huggingface_hub asks the Hub of one model at one commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(files: Mapping[str, bytes], id: str = "org/name") -> Iterator[tuple[str, list[str]]]:
    """Serve the files of a model; give the address, and the paths of requests as they come."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            name = path.removeprefix(f"/{id}/resolve/").partition("/")[2]
            if path == f"/api/models/{id}/tree/{COMMIT}":
                listed = [{"type": "file", "path": name, "size": len(held), "oid": _etag(held)}
                          for name, held in files.items()]  # fmt: skip
                self._answer(json.dumps(listed).encode(), Content_Type="application/json")
            elif path == f"/api/models/{id}" or path.startswith(f"/api/models/{id}/revision/"):
                self._answer(json.dumps({"id": id, "sha": COMMIT}).encode(), Content_Type="application/json")
            elif name in files:
                self._answer(files[name], ETag=f'"{_etag(files[name])}"')
            else:
                self._answer(b"", 404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def _etag(held: bytes) -> str:
    return hashlib.sha1(held, usedforsecurity=False).hexdigest()


def point_at(address: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub ask the Hub at `address`, or nobody where that is None, and keep files in `cache`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", address is None)
    if address is not None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
