"""A Hugging Face Hub of one process: enough of its interface for the real client to create, send, and load again."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OID = "0123456789abcdef" * 2 + "01234567"


class Hub:
    """What the stub holds. `files` by repository, `asked` is every request; the first token writes to me/... only."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # by sha256, as git-lfs has them
        self.asked: list[str] = []
        self.stalls = threading.Event()  # once set, requests are accepted and never answered
        self.ended = threading.Event()
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON value, or the bytes of a file, for one request."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if not repo.startswith("me/"):
                return 403, {"error": "Forbidden: you don't have the rights to create a model under this namespace"}
            url = {"url": f"{self.endpoint}/{repo}"}
            if repo in self.private:
                return 409, url | {"error": "You already created this model repo"}
            self.private[repo], self.files[repo] = asked.get("visibility") == "private", {}
            return 200, url
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/lfs/"):
            self.large[path.removeprefix("/lfs/")] = body
            return 200, {}
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            upload = {"actions": {"upload": {"href": f"{self.endpoint}/lfs/"}}}
            objects = [item | json.loads(json.dumps(upload)) for item in json.loads(body)["objects"]]
            for item in objects:
                item["actions"]["upload"]["href"] += item["oid"]
            return 200, {"transfer": "basic", "objects": objects}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = {True: "lfs", False: "regular"}
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": modes[n.endswith(".safetensors")], "shouldIgnore": False} for n in names]
            return 200, {"files": files}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[found[1]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[found[1]][value["path"]] = self.large[value["oid"]]
            url = f"{self.endpoint}/{found[1]}/commit/{OID}"
            return 200, {"commitUrl": url, "commitOid": OID, "pullRequestUrl": None}
        if (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path)) and found[1] in self.private:
            siblings = [{"rfilename": name} for name in self.files[found[1]]]
            return 200, {"id": found[1], "sha": OID, "private": self.private[found[1]], "siblings": siblings}
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if found and found[2] in self.files.get(found[1], {}):
            return 200, self.files[found[1]][found[2]]
        return 404, {"error": "Repository not found"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `Hub.asked`."""

    def _handle(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.split("?")[0]
        body = self._body()
        hub.asked.append(f"{self.command} {path}")
        if hub.stalls.is_set():
            hub.ended.wait(600)
            return
        known = self.headers.get("Authorization") == f"Bearer {hub.token}"
        storage = path.startswith("/lfs/")  # signed addresses need no token
        status, value = hub.answer(self.command, path, body) if known or storage else (401, {"error": "Invalid token"})
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/octet-stream" if isinstance(value, bytes) else "application/json")
        if isinstance(value, bytes):
            self.send_header("ETag", f'"{sha256(value).hexdigest()}"')
            self.send_header("X-Repo-Commit", OID)
        elif status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    do_GET = do_HEAD = do_POST = do_PUT = _handle


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """The stub on a free port of this machine, until the block ends."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = hub  # type: ignore[attr-defined]
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
