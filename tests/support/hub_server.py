"""A Hugging Face hub on the loopback interface, so that tests run the real libraries without the internet.

It speaks the part of the hub's HTTP protocol that `huggingface_hub`, `transformers` and `datasets` use to read a
repository and to upload a folder. Only the hub is replaced: with `HF_ENDPOINT` set to `HubServer.url`, caching,
retries and error handling are the libraries' own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal["portal", "cut", "drip"]

IN_XET = (".safetensors", ".parquet")  # files that the hub also offers by its other protocol, which is not imitated

USER = "tester"  # the account that every token belongs to

_ACTION = "revision|tree|paths-info|preupload|commit"
_API_PATH = re.compile(
    rf"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(?:/(?!(?:{_ACTION})/)[^/]+)?)"
    rf"(?:/(?P<action>{_ACTION})/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
_FILE_PATH = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Reply:
    """One complete HTTP answer; the handler adds Content-Length and leaves the body out for HEAD."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


# What a hotel's or a train's network answers to every request until one has logged in with a browser.
PORTAL = Reply(200, b"<!DOCTYPE html><title>Welcome to our network</title>", {"Content-Type": "text/html"})


class HubError(Exception):
    """A refusal; `code` becomes the X-Error-Code header, from which the libraries choose their exception."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.reply = Reply(status, b"", {name: value for name, value in headers.items() if value})


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def blob_id(content: bytes) -> str:
    """The id git gives to a file: the hub's ETag, and what uploads compare to skip files that have not changed."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Repository:
    """A served folder. Nothing is remembered between requests, so a test may change the files while serving."""

    name: str
    folder: Path

    def files(self) -> dict[str, bytes]:
        """The contents of all files by their path in the repository."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}

    def commit(self) -> str:
        """A commit hash that changes when, and only when, a file does."""
        lines = (f"{blob_id(content)} {name}\n" for name, content in self.files().items())
        return hashlib.sha1("".join(lines).encode()).hexdigest()

    def local(self, path: str) -> Path:
        """The place of a repository path on disk, never outside the folder."""
        if any(part in (".", "..") for part in path.split("/")):
            raise HubError(400, f"invalid path: {path}")
        return self.folder / path.strip("/")

    def entry(self, local: Path) -> dict[str, Any]:
        """The hub's description of one file or folder."""
        path = local.relative_to(self.folder).as_posix()
        if local.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        content = local.read_bytes()
        return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}

    def tree(self, path: str, recursive: bool) -> list[dict[str, Any]]:
        """What lies in a folder, and below it if `recursive`."""
        start = self.local(path)
        if not start.is_dir():
            raise HubError(404, f"{path} does not exist", "EntryNotFound", self.commit())
        return [self.entry(local) for local in sorted(start.rglob("*") if recursive else start.iterdir())]

    def info(self) -> dict[str, Any]:
        """The repository's page in the API."""
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
            for name, content in self.files().items()
        ]
        return {"id": self.name, "sha": self.commit(), "private": False, "tags": [], "siblings": siblings}

    def file(self, path: str, wanted: str | None) -> Reply:
        """A file, or with a Range header (streaming, resumed downloads) a part of it."""
        if not self.local(path).is_file():  # the commit lets the libraries remember that there is no such file
            raise HubError(404, "Entry not found", "EntryNotFound", self.commit())
        content = self.local(path).read_bytes()
        headers = {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": self.commit(), "Accept-Ranges": "bytes"}
        if path.endswith(IN_XET):
            route = f"/api/{self.name}/xet-read-token/{self.commit()}"  # which nobody should ask for
            headers |= {"X-Xet-Hash": hashlib.sha256(content).hexdigest(), "X-Xet-Refresh-Route": route}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        start = int(match[1]) if match else 0
        if match is None or start >= len(content):
            return Reply(200, content, headers)
        part = content[start : int(match[2]) + 1 if match[2] else None]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        return Reply(206, part, headers)

    def preupload(self, body: bytes) -> dict[str, Any]:
        """Ask for every file inside the commit itself; the hub's large file storage is not imitated."""
        known, mode = self.files(), {"uploadMode": "regular", "shouldIgnore": False}
        names = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": n, **mode, "oid": blob_id(known[n]) if n in known else None} for n in names]}

    def upload(self, body: bytes, url: str) -> dict[str, Any]:
        """Carry out one commit, which is a header line and then a line for each file."""
        for operation in map(json.loads, body.splitlines()):
            if operation["key"] not in ("header", "file"):
                raise HubError(400, f"unsupported operation: {operation['key']}")
            if operation["key"] == "file":
                target = self.local(operation["value"]["path"])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(operation["value"]["content"]))
        commit = self.commit()
        return {"success": True, "commitOid": commit, "commitUrl": f"{url}/{self.name}/commit/{commit}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive, as on the real hub
    disable_nagle_algorithm = True  # headers and body are two writes; without this each answer may take 40 ms

    def do_GET(self) -> None:
        hub = cast(_Server, self.server).hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = urlsplit(self.path)
        hub.requests.append(f"{self.command} {target.path}")
        if authorization := self.headers.get("Authorization"):
            hub.authorizations.add(authorization)
        if hub.closed.wait(hub.delay):
            self.close_connection = True  # a stopped hub says nothing more, even on a connection kept alive
            return
        try:
            reply = self._reply(hub, target.path, body)
        except HubError as error:
            reply = error.reply
        fault = hub.fault_of(f"{self.command} {target.path}")
        if fault == "portal":
            reply = PORTAL
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(reply.body[: len(reply.body) // 2])
            self.close_connection = True
        elif fault == "drip":
            for byte in reply.body:
                if hub.closed.wait(0.5):
                    break
                self.wfile.write(bytes([byte]))
        else:
            self.wfile.write(reply.body)

    do_HEAD = do_POST = do_GET  # noqa: N815 - the base class looks for these names

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: `HubServer.requests` is the log."""

    def _reply(self, hub: HubServer, path: str, body: bytes) -> Reply:
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            self._require_token()
            return _json({"type": "user", "name": USER, "orgs": []})
        if path == "/api/repos/create":
            self._require_token()
            return hub.create(json.loads(body))
        match = _FILE_PATH.fullmatch(path) or _API_PATH.fullmatch(path)
        if match is None:
            raise HubError(404, f"{path} is not part of this hub")
        part = {name: unquote(value) for name, value in match.groupdict(default="").items()}
        found = hub.find(part["kind"].strip("/") or "models", part["name"])
        if found.name != part["name"]:
            location = self.path[: match.start("name")] + found.name + self.path[match.end("name") :]
            return Reply(307, b"", {"Location": location})
        if part["revision"] not in ("", "main", found.commit()):
            raise HubError(404, f"Invalid rev id: {part['revision']}", "RevisionNotFound")
        if match.re is _FILE_PATH:
            return found.file(part["path"], self.headers.get("Range"))
        return self._api_reply(hub, found, part["action"], part["path"], body)

    def _api_reply(self, hub: HubServer, found: Repository, action: str, path: str, body: bytes) -> Reply:
        if action == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0]
            return _json(found.tree(path, recursive.lower() == "true"))
        if action == "paths-info":
            asked = [found.local(asked) for asked in parse_qs(body.decode()).get("paths", [])]
            return _json([found.entry(local) for local in asked if local.exists() and local != found.folder])
        if action in ("preupload", "commit"):
            self._require_token("RepoNotFound")  # what the libraries make of the real hub's 401 for a repository
            return _json(found.preupload(body) if action == "preupload" else found.upload(body, hub.url))
        return _json(found.info())

    def _require_token(self, code: str = "") -> None:
        if not self.headers.get("Authorization"):
            raise HubError(401, "Invalid username or password.", code)


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # the libraries open several connections at once

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up (a timeout under test) is no news; anything else is a fault of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class HubServer:
    """Serves `root/models/ORG/NAME` and `root/datasets/ORG/NAME` while it is open as a context manager.

    `requests` lists "METHOD /path" of every request in order, `authorizations` the Authorization headers seen, and
    `delay`, which may be set at any time, is the number of seconds that every answer waits. `faults`, likewise, gives
    to a regular expression of such requests what goes wrong with their answers: `portal` (a page in place of it),
    `cut` (the connection is lost half way), `drip` (two bytes a second).
    """

    def __init__(self, root: Path, delay: float = 0.0) -> None:
        self.root = Path(root)
        self.delay = delay
        self.requests: list[str] = []
        self.authorizations: set[str] = set()
        self.faults: dict[str, Fault] = {}
        self.closed = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop at once: connections are refused, answers still waiting are dropped."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, request: str) -> Fault | None:
        """What goes wrong with the answer to a request."""
        return next((fault for pattern, fault in self.faults.items() if re.search(pattern, request)), None)

    def find(self, kind: str, name: str) -> Repository:
        """The repository of that name, or of ORG/NAME for a bare NAME, to which the hub redirects."""
        base = self.root / kind
        bare = {folder.name: folder for folder in base.glob("*") if any(path.is_file() for path in folder.glob("*"))}
        full = {f"{folder.parent.name}/{folder.name}": folder for folder in base.glob("*/*") if folder.is_dir()}
        for known, folder in {**bare, **full}.items():
            if name in (known, folder.name):
                return Repository(known, folder)
        raise HubError(404, "Repository not found", "RepoNotFound")

    def create(self, wanted: dict[str, Any]) -> Reply:
        """Make an empty repository; 409 if there is one, which `exist_ok=True` forgives."""
        kind = f"{wanted.get('type') or 'model'}s"
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        folder = self.root / kind / name
        status = 409 if folder.is_dir() else 200
        folder.mkdir(parents=True, exist_ok=True)
        return _json({"url": f"{self.url}/{'datasets/' if kind == 'datasets' else ''}{name}", "name": name}, status)
