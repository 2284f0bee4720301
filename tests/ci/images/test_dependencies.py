"""The layer of packages: made by uv for another machine, with byte code that is always the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ci.errors import Mistake, Unavailable
from ci.images import dependencies, layers

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
UV = """#!/bin/sh
# Plays uv: installs one package, with a program that names this machine's Python.
echo "$@" >> {log}
while [ $# -gt 0 ]; do [ "$1" = --target ] && site=$2; shift; done
mkdir -p $site/bin $site/pack-1.dist-info
echo 'value = 1' > $site/pack.py
echo '#!/home/me/python' > $site/bin/pack
printf 'pack.py,sha256=1,2\\nbin/pack,sha256=9,9\\n../../bin/pack,,\\n' > $site/pack-1.dist-info/RECORD
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of uv; returns its log."""
    program, log = tmp_path / "bin" / "uv", tmp_path / "log"
    program.parent.mkdir()
    program.write_text(UV.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def contents(layer: layers.Layer) -> dict[str, bytes]:
    import tarfile

    with tarfile.open(layer.path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # pyright: ignore


def test_packages_are_installed_once_for_the_platform_and_without_programs(uv: Path) -> None:
    layer = dependencies.install("pack==1 --hash=sha256:1\n", PYTHON, "arm64")
    assert dependencies.install("pack==1 --hash=sha256:1\n", PYTHON, "arm64") == layer
    assert len(uv.read_text().splitlines()) == 1
    said = uv.read_text()
    for wanted in ("--require-hashes", "--only-binary :all:", "--no-deps", "--python-platform aarch64-manylinux_2_28"):
        assert wanted in said
    found = contents(layer)
    site = dependencies.SITE.lstrip("/")
    compiled = f"{site}/__pycache__/pack.cpython-{PYTHON.replace('.', '')}.pyc"
    assert set(found) == {f"{site}/pack.py", f"{site}/pack-1.dist-info/RECORD", compiled}
    assert found[f"{site}/pack-1.dist-info/RECORD"] == b"pack.py,sha256=1,2\n"
    other = dependencies.install("pack==2 --hash=sha256:1\n", PYTHON, "arm64")
    assert len(uv.read_text().splitlines()) == 2 and other.diff_id == layer.diff_id  # the fake installs the same


def test_byte_code_is_used_whatever_the_time_of_its_source_and_always_the_same(tmp_path: Path) -> None:
    made: list[bytes] = []
    for folder in (tmp_path / "one", tmp_path / "deep" / "two"):
        folder.mkdir(parents=True)
        (folder / "pack.py").write_text("def f():\n    return {'a', 'b', 'c', 1.5}\n")
        (folder / "broken.py").write_text("def f(:\n")  # a template for another language, say
        dependencies.compile_all(folder, "/opt/x", PYTHON)
        made.append(Path(importlib.util.cache_from_source(str(folder / "pack.py"))).read_bytes())
        assert not Path(importlib.util.cache_from_source(str(folder / "broken.py"))).exists()
    assert made[0] == made[1] and b"/opt/x/pack.py" in made[0] and str(tmp_path).encode() not in made[0]
    assert int.from_bytes(made[0][4:8], "little") == 0b01  # PEP 552: by hash, and not checked


def test_without_uv_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Mistake, match="uv is not on the PATH"):
        dependencies.install("a==1\n", PYTHON, "amd64")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("\u00d7 Failed to download a\n  ╰─▶ error sending request", Unavailable),
        ("\u00d7 No solution found: a has no wheels with a matching platform", Mistake),
        ("\u00d7 Hash mismatch for a", Mistake),
    ],
)
def test_what_uv_says_is_one_line(uv: Path, said: str, kind: type[Exception]) -> None:
    program = uv.parent / "bin" / "uv"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 1\n")
    with pytest.raises(kind, match="uv cannot install what the image needs: ") as caught:
        dependencies.install("a==1\n", PYTHON, "amd64")
    assert "\n" not in str(caught.value) and not (layers.cache() / "layers").exists()
