"""A hub on loopback: it answers about files as huggingface.co does, as far as `huggingface_hub` and a pull ask it.

A file is at /ORG/NAME/resolve/REVISION/FILE. The answer to HEAD and GET has the commit (X-Repo-Commit), the ETag
and the size; large files are elsewhere, and the answer is a redirect with both as X-Linked-*. What is missing has
a status and X-Error-Code.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from releases import listening

from sscxr.release import release

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "ours/cxr"


@dataclass
class Hub:
    """A hub with one repository.

    Attributes:
        folder: its files, the same at each revision.
        asked: (method, revision, file, Authorization) of each request.
        token: that a request must have; empty: none.
        gated: whether access has to be granted.
        commit: the X-Repo-Commit of its answers.
        store: the address of large files; empty: it sends them itself.
    """

    folder: Path
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)
    token: str = ""
    gated: bool = False
    commit: str = COMMIT
    store: str = ""
    url: str = ""

    def answer(self, method: str, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not match:
            return 404, {}, b""
        repo, revision, name = match.groups()
        self.asked.append((method, revision, name, authorization))
        if repo != REPO or (self.token and authorization != f"Bearer {self.token}"):
            return 404 if self.token else 401, {"X-Error-Code": "RepoNotFound"}, b""
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if revision not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        headers = {"X-Repo-Commit": self.commit} if self.commit else {}
        file = self.folder / name
        if not file.is_file():
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        data = file.read_bytes()
        digest = f'"{sha256(data).hexdigest()}"'
        if self.store and name == release.WEIGHTS:
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": digest}
            return 302, headers | linked | {"Location": f"{self.store}/{name}?signed=1"}, b""
        return 200, headers | {"ETag": digest}, data


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    """Serve a folder as the repository `REPO`."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.command, self.path, self.headers.get("Authorization", ""))
            with suppress(ConnectionError):
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as hub.url:
        yield hub
