"""The release file: written whole, read strictly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ci.errors import Mistake
from ci.release import Release, dump, load, parse

RELEASE = Release(
    model="tumor",
    environment="dev",
    version=3,
    run="0" * 32,
    bento="tumor:" + "1" * 16,
    image="wharf.local/tumor@sha256:" + "1" * 64,
    artifact="sha256:" + "2" * 64,
    evidence="sha256:" + "3" * 64,
    data="sha256:" + "4" * 64,
    commit="5" * 40,
)


def test_what_is_written_is_read_back() -> None:
    assert parse(dump(RELEASE), "x.yaml") == RELEASE


def test_digits_only_digests_stay_text() -> None:
    digits = replace(RELEASE, run="1" * 32, commit="1234567890" * 4)
    assert parse(dump(digits), "x.yaml") == digits


def test_no_file_is_no_release(tmp_path: Path) -> None:
    assert load(tmp_path, "dev", "tumor") is None


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("version: 3", "version: three", "version: must be a whole number from 1, not 'three'"),
        ("version: 3", "version: 0", "version: must be a whole number from 1, not 0"),
        ("version: 3", "version: true", "version: must be a whole number from 1, not True"),
        ("version: 3\n", "", "version: is missing"),
        ("version: 3", "verison: 3", "verison: unknown key (did you mean 'version'?)"),
        ("@sha256:" + "1" * 64, ":latest", "image: must match"),
    ],
)
def test_a_fault_is_named(old: str, new: str, fault: str) -> None:
    with pytest.raises(Mistake) as caught:
        parse(dump(RELEASE).replace(old, new), "gitops/releases/dev/tumor.yaml")
    assert any(line.startswith(f"gitops/releases/dev/tumor.yaml: {fault}") for line in caught.value.lines)


def test_broken_yaml_is_one_line() -> None:
    with pytest.raises(Mistake) as caught:
        parse("a: [", "x.yaml")
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith("x.yaml: not valid YAML")
