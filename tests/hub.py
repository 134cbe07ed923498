"""A stand-in of the Hugging Face hub on this machine: repositories in memory, its HTTP answers.

What ``huggingface_hub`` asks for when a model is pushed and downloaded: whoami, creating a
repository, listing its files, the modes of an upload, a commit, files and their heads.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from upfeat.upsamplers.cards import LICENCE_IDS, split_card

TOKEN = "hf_stand_in"
USER = "me"


class StandInHub:
    """Repositories by id, each a dictionary of files; requests as they came."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, int] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def sha(self, repository: str) -> str:
        return f"{self.commits.get(repository, 0):040x}"


class Handler(BaseHTTPRequestHandler):
    hub: StandInHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        writes = self.command == "POST"
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if (writes or path == "/api/whoami-v2") and not known:
            return self._send(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            return self._send(200, {"type": "user", "name": USER, "auth": {"type": "access_token"}})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree)/.*", path):
            return self._repository(found[1], found[2], body)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.*)?", path):
            return self._info(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(found[1], found[2])
        return self._send(404, {"error": f"the stand-in has no {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or USER
        repository = f"{owner}/{asked['name']}"
        if owner != USER:
            return self._send(403, {"error": f"You don't have the rights to write to {owner}"})
        address = {"url": f"{self.hub.endpoint}/{repository}", "id": repository}
        if repository in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo", **address})
        self.hub.repositories[repository] = {".gitattributes": b""}
        return self._send(200, address)

    def _validate(self, card: str) -> None:
        front, _ = split_card(card)
        known = front.get("license", "unknown") in LICENCE_IDS
        errors = [] if known else [{"message": '"license" must be one of ...'}]
        return self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _repository(self, repository: str, what: str, body: bytes) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._missing("RepoNotFound")
        if what == "tree":
            listed = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self._send(200, listed)
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self._send(200, {"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.hub.commits[repository] = self.hub.commits.get(repository, 0) + 1
        sha = self.hub.sha(repository)
        address = f"{self.hub.endpoint}/{repository}/commit/{sha}"
        return self._send(200, {"success": True, "commitOid": sha, "commitUrl": address})

    def _info(self, repository: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._missing("RepoNotFound")
        siblings = [{"rfilename": name} for name in files]
        sha = self.hub.sha(repository)
        return self._send(200, {"id": repository, "sha": sha, "siblings": siblings})

    def _file(self, repository: str, name: str) -> None:
        if repository not in self.hub.repositories:
            return self._missing("RepoNotFound")
        content = self.hub.repositories[repository].get(name)
        if content is None:
            return self._missing("EntryNotFound")
        etag = hashlib.sha1(content).hexdigest()
        return self._send(
            200, content, ETag=f'"{etag}"', **{"X-Repo-Commit": self.hub.sha(repository)}
        )

    def _missing(self, code: str) -> None:
        return self._send(404, {"error": "not found"}, **{"X-Error-Code": code})

    def _send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def running_hub() -> Iterator[StandInHub]:
    """A hub that answers on a port of this machine."""
    hub = StandInHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_to(endpoint: str, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``huggingface_hub`` ask there, with an empty cache and no token of this machine."""
    constants = "huggingface_hub.constants"
    for name in ("UPFEAT_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_PROGRESS_BARS", True)
