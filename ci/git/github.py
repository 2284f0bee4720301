"""Open a pull request on GitHub: through the `gh` command where it is installed, else through the REST API.

API: https://docs.github.com/en/rest/pulls/pulls. `GITHUB_API_URL` and `GITHUB_SERVER_URL` (set by GitHub Actions)
are honoured, so GitHub Enterprise works too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from ci.errors import Mistake, Refusal, Unavailable
from ci.shell import CommandFailed, run

_TIMEOUT_S = 30
_GH_TIMEOUT_S = 120


class Desk(Protocol):
    """Where pull requests of one repository are opened."""

    def open_or_update(self, branch: str, title: str, body: str) -> str:
        """Return the address of the one open pull request of `branch` into main, made or brought up to date."""
        ...


def desk(repository: str) -> Desk:
    """Return the way to open pull requests of `owner/name`; raises Mistake when there is neither gh nor a token."""
    if shutil.which("gh"):
        return _Gh(repository)
    token = os.environ.get("GH_TOKEN") or os.environ.get("GITHUB_TOKEN")
    if token:
        return _Rest(repository, token)
    raise Mistake(
        f"a pull request on {repository} needs the `gh` command or a token in GITHUB_TOKEN; nothing was pushed",
        tip="install GitHub's command line and run `gh auth login`, or set GITHUB_TOKEN",
    )


def server() -> str:
    """Return the address of the GitHub that is used, without a slash at its end."""
    return os.environ.get("GITHUB_SERVER_URL", "https://github.com").rstrip("/")


def _api() -> str:
    if url := os.environ.get("GITHUB_API_URL"):
        return url.rstrip("/")
    host = urlsplit(server()).hostname
    return "https://api.github.com" if host == "github.com" else f"{server()}/api/v3"


@dataclass(frozen=True)
class _Gh:
    repository: str

    def open_or_update(self, branch: str, title: str, body: str) -> str:
        found = json.loads(self._gh("list", "--head", branch, "--base", "main", "--state", "open", "--json", "url"))
        if found:
            url = str(found[0]["url"])
            self._gh("edit", url, "--title", title, "--body-file", "-", stdin=body)
            return url
        made = self._gh("create", "--head", branch, "--base", "main", "--title", title, "--body-file", "-", stdin=body)
        return made.strip().splitlines()[-1]

    def _gh(self, *words: str, stdin: str | None = None) -> str:
        where = f"{urlsplit(server()).hostname}/{self.repository}"
        try:
            return run(
                ["gh", "pr", *words, "--repo", where],
                env={"GH_PROMPT_DISABLED": "1", "NO_COLOR": "1"},
                stdin=stdin,
                timeout=_GH_TIMEOUT_S,
            )
        except CommandFailed as error:
            cause = (error.stderr.strip().splitlines() or ["no reason given"])[0]
            raise Unavailable(
                f"the pull request on {self.repository} failed: gh: {cause}", tip="`gh auth status` shows your access"
            ) from None
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"the pull request on {self.repository} failed: gh did not end in {_GH_TIMEOUT_S} seconds",
                tip="is GitHub reachable? run this again later",
            ) from None


@dataclass(frozen=True)
class _Rest:
    repository: str
    token: str

    def open_or_update(self, branch: str, title: str, body: str) -> str:
        owner = self.repository.split("/")[0]
        query = {"head": f"{owner}:{branch}", "base": "main", "state": "open"}
        found: Any = self._call("GET", "pulls", params=query)
        if found:
            number = int(found[0]["number"])
            return str(self._call("PATCH", f"pulls/{number}", json={"title": title, "body": body})["html_url"])
        made = {"title": title, "body": body, "head": branch, "base": "main"}
        return str(self._call("POST", "pulls", json=made)["html_url"])

    def _call(self, method: str, path: str, **content: Any) -> Any:
        import requests  # only for those who talk to GitHub

        url = f"{_api()}/repos/{self.repository}/{path}"
        headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {self.token}"  # so that a ~/.netrc does not replace it
            return request

        try:
            answer = requests.request(method, url, headers=headers, auth=sign, timeout=_TIMEOUT_S, **content)
        except requests.RequestException as error:
            raise Unavailable(f"GitHub at {_api()} does not answer: {type(error).__name__}") from None
        if answer.ok:
            return answer.json()
        line = f"GitHub said {answer.status_code} to {method} {urlsplit(url).path}: {_reason(answer.text)}"
        if answer.status_code in {401, 403, 404}:
            raise Refusal(
                line, tip="the token needs to write contents and pull requests; in GitHub Actions, see docs/ci.md"
            )
        if answer.status_code == 422:
            raise Refusal(line)
        raise Unavailable(line, tip="run this again later")


def _reason(text: str) -> str:
    """Return the messages of a GitHub error document in one line."""
    try:
        document: Any = json.loads(text)
        details: list[Any] = list(document.get("errors") or [])
        parts = [str(document["message"])]
        parts += [str(detail.get("message", detail) if isinstance(detail, dict) else detail) for detail in details]
        return ": ".join(parts)
    except (ValueError, KeyError, AttributeError):
        return (text.strip().splitlines() or ["no reason given"])[0][:200]
