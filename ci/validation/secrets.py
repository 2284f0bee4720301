"""No secrets in files that git tracks: keys of known shape, passwords in URLs, Kubernetes Secrets with data.

A line that only looks like a secret is let through by the words in `ALLOW` on it, best with a reason behind them.
Each family is searched for only in files that hold one of its literal needles, which is a hundred times as fast as
running its regular expression over everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ALLOW = b"wharf:allow-secret"
_HINT = f"remove it and revoke it; if it is none, write {ALLOW.decode()} in a comment on that line"
_LARGEST = 5_000_000  # bytes; what is larger is data, and has no place in git anyway


@dataclass(frozen=True)
class Family:
    """One kind of secret: `needles` are literal, one of them must be in the file; `pattern` finds the secret."""

    name: str
    needles: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


def _family(name: str, needles: Sequence[str], pattern: str) -> Family:
    return Family(name, tuple(needle.encode() for needle in needles), re.compile(pattern.encode(), re.MULTILINE))


# Between a name and its value: `NAME=`, `NAME: "`, `"NAME": "`, or the two lines of a container's env entry.
_IS = r"""["']?\]?\s*(?:[=:]|,|\n\s*-?\s*["']?value["']?\s*:)\s*["']?"""

# Shapes as their issuers document them, and as gitleaks and GitHub's secret scanning look for them.
FAMILIES = (
    _family("an AWS access key id", ["AKIA", "ASIA"], r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b(?<!EXAMPLE)"),
    _family(
        "an AWS secret access key",
        ["aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"],
        rf"(?i:aws_secret_access_key){_IS}[A-Za-z0-9/+]{{40}}\b(?<!EXAMPLEKEY)",
    ),
    _family("a private key", ["PRIVATE KEY"], r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    _family(
        "a GitHub token",
        ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"],
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    ),
    _family("a W&B key", ["WANDB_API_KEY"], rf"WANDB_API_KEY{_IS}(?:local-)?[0-9a-f]{{40}}"),
    _family("a W&B key", ["wandb_v1_"], r"\bwandb_v1_[A-Za-z0-9_]{40,}"),
    _family("a Slack token", ["xox"], r"\bxox[abeprs]-[A-Za-z0-9-]{20,}"),
    _family("a Google API key", ["AIza"], r"\bAIza[A-Za-z0-9_-]{35}\b"),
    _family("a Pulumi access token", ["pul-"], r"\bpul-[0-9a-f]{40}\b"),
    _family(
        "a password in a URL",
        ["://"],
        # A placeholder, `user:$PASSWORD@`, `user:<password>@`, is none.
        r"""\b[a-z][a-z0-9+.-]*://[^\s/:@"'`<>{}$]*:[^\s/@"'`<>{}$*]{3,}@[A-Za-z0-9\[]""",
    ),
)
_SECRET_KIND = re.compile(rb"""^\s*["']?kind["']?\s*:\s*["']?Secret["']?\s*,?\s*(?:#.*)?$""", re.MULTILINE)
_SECRET_DATA = re.compile(
    rb"""^\s*["']?(?:data|stringData)["']?\s*:\s*(?:\{\s*[^\s}]|\n\s+["']?[\w.-]+["']?\s*:)""", re.MULTILINE
)


def check_files(root: Path, paths: Sequence[str]) -> list[str]:
    """Return one fault for every line under `root` that holds a secret; the secret itself is never shown."""
    return [fault for path in paths for fault in _file_faults(root, path)]


def _file_faults(root: Path, path: str) -> list[str]:
    file = root / path
    if file.is_symlink() or not file.is_file():
        return []
    if file.stat().st_size > _LARGEST:
        return [
            f"{path}: is larger than {_LARGEST // 1_000_000} MB and was not searched for secrets (keep data out of git)"
        ]
    content = file.read_bytes()
    return [f"{path}:{line}: holds {what} ({_HINT})" for line, what in found_in(content, path)]


def found_in(content: bytes, path: str) -> list[tuple[int, str]]:
    """Return (line number, kind of secret) for each secret in the content of a file."""
    found: list[tuple[int, str]] = []
    for family in FAMILIES:
        if any(needle in content for needle in family.needles):
            for match in family.pattern.finditer(content):
                # The end of the match is the secret itself, which may stand a line below its name.
                found += _unless_allowed(content, match.end() - 1, family.name)
    if b"Secret" in content and path.endswith((".yaml", ".yml", ".json")):
        found += _kubernetes_secrets(content)
    return sorted(set(found))


def _kubernetes_secrets(content: bytes) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    at = 0
    for document in re.split(rb"(?m)^(?=---)", content):
        kind = _SECRET_KIND.search(document)
        if kind and _SECRET_DATA.search(document):
            start = at + kind.start() + len(kind.group()) - len(kind.group().lstrip())
            found += _unless_allowed(content, start, "a Kubernetes Secret with its data")
        at += len(document)
    return found


def _unless_allowed(content: bytes, at: int, what: str) -> list[tuple[int, str]]:
    start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
    line = content[start : end if end >= 0 else len(content)]
    return [] if ALLOW in line else [(content.count(b"\n", 0, at) + 1, what)]
