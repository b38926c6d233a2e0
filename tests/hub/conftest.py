"""A hub on this machine: the few calls of the hub's HTTP interface that the libraries make, served from a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "c0ffee" + 34 * "0"
"""The only commit of every repository here; ``main`` and ``v1`` name it."""

REVISIONS = ("main", "v1", COMMIT)


class LocalHub:
    """Repositories below ``folder/models/OWNER/NAME`` and ``folder/datasets/OWNER/NAME``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the libraries of a new process use this hub, and a cache of its own."""
        host, port = self.server.server_address[:2]
        return {
            "HF_ENDPOINT": f"http://{host}:{port}",
            "HF_HOME": str(self.folder / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_POST(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                form = parse_qs(self.rfile.read(length).decode()) if length else {}
                hub.asked.append(f"{self.command} {self.path}")
                status, headers, content = hub.answer(
                    unquote(urlsplit(self.path).path), form, self.headers.get("Range")
                )
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        return Handler

    def answer(self, path: str, form: dict[str, list[str]], span: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of one call."""
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4:
            return self._api(self.folder / parts[1] / parts[2] / parts[3], f"{parts[2]}/{parts[3]}", parts[4:], form)
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if len(parts) >= 5 and parts[2] == "resolve" and parts[3] in REVISIONS:
            return self._file(self.folder / kind / parts[0] / parts[1] / "/".join(parts[4:]), span)
        return _missing("RepoNotFound")

    def _api(
        self, repository: Path, name: str, rest: list[str], form: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        """Facts about a repository, its file tree, or some of its paths."""
        if not repository.is_dir():
            return _missing("RepoNotFound")
        if len(rest) >= 2 and rest[1] not in REVISIONS:
            return _missing("RevisionNotFound")
        files = sorted(path for path in repository.rglob("*") if path.is_file())
        entries = [
            {"type": "file", "path": str(path.relative_to(repository)), "size": path.stat().st_size, "oid": _etag(path)}
            for path in files
        ]
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            return _json([entry for entry in entries if str(entry["path"]).startswith(below)])
        if rest[:1] == ["paths-info"]:
            wanted = set(form.get("paths", []))
            return _json([entry for entry in entries if entry["path"] in wanted])
        siblings = [{"rfilename": entry["path"]} for entry in entries]
        return _json({"id": name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": [], "downloads": 0})

    def _file(self, path: Path, span: str | None) -> tuple[int, dict[str, str], bytes]:
        """A file, or a span of it."""
        if not path.is_file():
            return _missing("EntryNotFound")
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        if span is None:
            return 200, headers, content
        begin, _, end = span.removeprefix("bytes=").partition("-")
        last = min(int(end) if end else len(content) - 1, len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
        return 206, headers, content[int(begin) : last + 1]


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _missing(code: str) -> tuple[int, dict[str, str], bytes]:
    return 404, {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "text/plain"}, code.encode()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """An empty hub on the loopback address."""
    served = LocalHub(tmp_path / "hub")
    yield served
    served.close()
