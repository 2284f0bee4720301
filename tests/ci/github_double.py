"""GitHubDouble: the pull-request part of GitHub's REST API on a local port, and a `gh` command that keeps a file."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class GitHubDouble:
    """Holds the pull requests of one repository; `url` is the API's address."""

    def __init__(self, repository: str, token: str) -> None:
        self.repository, self.token = repository, token
        self.pulls: list[dict[str, Any]] = []
        self.status: int | None = None  # answered to every change instead of doing it
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                code, document = double.reply(self.command, self.path, self.headers.get("Authorization"), body)
                content = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PATCH = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply(self, method: str, target: str, signed: str | None, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer as https://docs.github.com/en/rest/pulls/pulls says."""
        parts = urlsplit(target)
        folder = f"/repos/{self.repository}/pulls"
        if signed != f"Bearer {self.token}":
            return 401, {"message": "Bad credentials"}
        if not parts.path.startswith(folder):
            return 404, {"message": "Not Found"}
        if method == "GET":
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            owner = self.repository.split("/")[0]
            found = [pull for pull in self.pulls if f"{owner}:{pull['head']['ref']}" == query["head"]]
            return 200, [pull for pull in found if pull["state"] == query["state"]]
        if self.status:
            return self.status, {"message": "Validation Failed", "errors": [{"message": "told to fail"}]}
        if method == "PATCH":
            pull = self.pulls[int(parts.path.rsplit("/", 1)[1]) - 1]
            pull.update(body)
            return 200, pull
        number = len(self.pulls) + 1
        pull = {**body, "number": number, "state": "open", "head": {"ref": body["head"]}}
        pull["html_url"] = f"https://github.com/{self.repository}/pull/{number}"
        self.pulls.append(pull)
        return 201, pull


@contextmanager
def github_double(repository: str, token: str) -> Generator[GitHubDouble]:
    """Run a GitHubDouble while the block runs."""
    double = GitHubDouble(repository, token)
    try:
        yield double
    finally:
        double.close()


_GH = """#!{python}
import json, pathlib, sys

words = sys.argv[1:]
store = pathlib.Path({store!r})
state = json.loads(store.read_text())
state["calls"].append(words)
option = lambda name: words[words.index(name) + 1]
assert words[0] == "pr", words
if state["fail"] and words[1] != "list":
    store.write_text(json.dumps(state))
    sys.exit("pull request create failed: GraphQL: told to fail (createPullRequest)")
if words[1] == "list":
    found = [pull for pull in state["pulls"] if pull["head"] == option("--head")]
    print(json.dumps([{{"url": pull["url"]}} for pull in found]))
elif words[1] == "create":
    url = f"https://github.com/team/models/pull/{{len(state['pulls']) + 1}}"
    pull = {{"head": option("--head"), "title": option("--title"), "body": sys.stdin.read(), "url": url}}
    state["pulls"].append(pull)
    print(url)
elif words[1] == "edit":
    (pull,) = [pull for pull in state["pulls"] if pull["url"] == words[2]]
    pull.update(title=option("--title"), body=sys.stdin.read())
store.write_text(json.dumps(state))
"""


class FakeGh:
    """A `gh` in `folder` (to be put on the PATH) that takes the options of the real one and keeps a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self._store = folder / "gh.json"
        self._store.write_text(json.dumps({"pulls": [], "calls": [], "fail": False}))
        (self.folder / "gh").write_text(_GH.format(python=sys.executable, store=str(self._store)))
        (self.folder / "gh").chmod(0o755)

    @property
    def pulls(self) -> list[dict[str, str]]:
        """The pull requests that were opened."""
        return json.loads(self._store.read_text())["pulls"]

    @property
    def calls(self) -> list[list[str]]:
        """The words of each call."""
        return json.loads(self._store.read_text())["calls"]

    def fail(self, yes: bool) -> None:
        """Let creating and editing fail from now on."""
        state = json.loads(self._store.read_text())
        self._store.write_text(json.dumps({**state, "fail": yes}))
