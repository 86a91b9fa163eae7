"""A model hub on this machine, which answers as the Hugging Face hub does: lists of files, and the files in parts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running hub.

    Attributes:
        url: For HF_ENDPOINT.
        root: Its repositories, `owner/name/files`.
        asked: Every path that was asked for, with the Range header if any.
        cut: So many bytes of a file are sent and the connection is closed; 0: all.
        lie: Names of files that are sent with one byte wrong.
        gated: Names of files that are given to nobody.
    """

    url: str
    root: Path
    asked: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    lie: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve the repositories below a folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            made.asked.append((path, self.headers.get("Range", "")))
            if path.startswith("/api/models/"):
                self._list(made.root / path.removeprefix("/api/models/").partition("/revision/")[0])
            else:
                repository, _, name = path[1:].partition(f"/resolve/{COMMIT}/")
                self._send(made.root / repository / name)

        def _list(self, folder: Path) -> None:
            if not folder.is_dir():
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            siblings = []
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                blob = file.read_bytes()
                large = {"lfs": {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest(), "pointerSize": 100}}
                siblings.append({
                    "rfilename": file.relative_to(folder).as_posix(), "size": len(blob),
                    "blobId": hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest(),
                    **(large if file.suffix in (".onnx", ".safetensors") else {}),
                })  # fmt: skip
            name = folder.relative_to(made.root).as_posix()
            self._answer(200, {"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings})

        def _send(self, file: Path) -> None:
            blob = bytearray(file.read_bytes())
            if file.name in made.lie:
                blob[len(blob) // 2] ^= 1
            start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
            if file.name in made.gated or (start and start >= len(blob)):
                self._answer(401 if file.name in made.gated else 416, {"error": "no"})
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(blob) - start))
            self.end_headers()
            self.wfile.write(blob[start : start + made.cut] if made.cut else blob[start:])

        def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)),
                                **(headers or {})}.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Hub(f"http://127.0.0.1:{server.server_port}", root)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)  # polls: it ends at once
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
