"""The cache of the node's programs. A small shell script plays Go: it writes what it is told to build."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ci.cluster.node import golang, tools
from ci.errors import Mistake, Refusal, Unavailable

VERSION = "go1.26.8"
GO = r"""#!/bin/sh
case "$1" in
env)
    printf '{"GOVERSION":"%s","GOHOSTARCH":"amd64"}\n' "$(cat "$PLAY/version")" ;;
list)
    echo "$PLAY/module" ;;
build)
    echo "$PWD|$GOFLAGS|$GOTOOLCHAIN|$GOWORK|$CGO_ENABLED|$*" >> "$PLAY/builds"
    if [ -e "$PLAY/failure" ]; then cat "$PLAY/failure" >&2; exit 1; fi
    if [ -e "$PLAY/slow" ]; then sleep 300 & echo $! > "$PLAY/child"; wait; fi
    sleep 0.2
    echo example.com/compiled >&2
    shift; while [ "$1" != -o ]; do shift; done; out=$2; shift 2
    for package; do
        case "$out" in */) file=$out${package##*/} ;; *) file=$out ;; esac
        echo "$package" > "$file"
    done ;;
esac
"""


class Play:
    """The fake Go and what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for manifest in ("core-install.yaml", "install.yaml"):
            path = folder / "module" / "manifests" / manifest
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {manifest}\n")
            path.chmod(0o444)  # as in Go's module cache
        self.say_version(VERSION)
        program = folder / "bin" / "go"
        program.parent.mkdir()
        program.write_text(GO)
        program.chmod(0o755)

    def say_version(self, version: str) -> None:
        (self.folder / "version").write_text(version)

    def builds(self) -> list[str]:
        log = self.folder / "builds"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    play = Play(tmp_path / "go")
    monkeypatch.setenv("PLAY", str(play.folder))
    monkeypatch.setenv("PATH", f"{play.folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return play


def test_everything_is_built_once_with_the_pinned_flags(
    play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tools.ensure()
    assert len(play.builds()) == len(tools.ALL)
    for program in ("kube-apiserver", "kubelet", "kube-proxy", "kubectl", "coredns", "argocd", "rollouts-controller"):
        path = built.path(program)
        assert os.access(path, os.X_OK)
        assert path.is_relative_to(tmp_path / "cache" / "modelwharf" / "tools")
        assert built.folder in path.parents
    assert built.manifest("argocd").read_text() == "# core-install.yaml\n"
    assert built.manifest("rollouts").read_text() == "# install.yaml\n"
    shown = capsys.readouterr().err
    assert re.search(r"10 programs are built once from pinned sources: about \d+ minutes on \d+ core", shown)
    assert "1 packages compiled" in shown

    again = tools.ensure()
    assert again == built
    assert len(play.builds()) == len(tools.ALL)
    assert capsys.readouterr().err == ""


def test_settings_of_the_user_change_neither_pins_nor_flags(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "auto", "CGO_ENABLED": "1", "GOWORK": "x"}.items():
        monkeypatch.setenv(name, value)
    tools.ensure(["kubernetes"])
    folder, flags, toolchain, work, cgo, arguments = play.builds()[0].split("|")
    assert (flags, toolchain, work, cgo) == ("-mod=readonly", "local", "off", "0")
    assert Path(folder) == tools.PINS / "kubernetes"
    version = _pinned("kubernetes", "k8s.io/kubernetes")
    assert "-trimpath" in arguments and "-s -w" in arguments
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        assert f"-X {package}.gitVersion={version}" in arguments


def test_argo_cd_reports_its_version(play: Play) -> None:
    built = tools.ensure(["argocd"])
    version = _pinned("argocd", "github.com/argoproj/argo-cd/v3").removeprefix("v")
    assert f"-X github.com/argoproj/argo-cd/v3/common.version={version}" in play.builds()[0]
    assert built.versions == {"argocd": version}


def _pinned(tool: str, module: str) -> str:
    return next(
        words[words.index(module) + 1]
        for line in (tools.PINS / tool / "go.mod").read_text().splitlines()
        if module in (words := line.split()) and words[-2] != "=>" and len(words) > words.index(module) + 1
    )


@pytest.mark.parametrize("tool", [tool for tool in tools._TOOLS if tool.module])
def test_what_is_built_is_pinned_with_checksums(tool: tools.Tool) -> None:
    pins, sums = ((tools.PINS / tool.name / name).read_text() for name in ("go.mod", "go.sum"))
    declared = set(re.findall(r"^(?:tool |\t)([\w./-]+)$", pins, re.MULTILINE))
    assert declared == set(tool.programs.values())
    assert f"{tool.module} {_pinned(tool.name, tool.module)} h1:" in sums


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip, Path.unlink, lambda path: path.chmod(0o644)],
    ids=["truncated", "flipped", "removed", "not executable"],
)
def test_a_damaged_program_is_built_anew(play: Play, damage, capsys: pytest.CaptureFixture[str]) -> None:
    program = tools.ensure(["coredns"]).path("coredns")
    before = program.read_bytes()
    damage(program)
    capsys.readouterr()
    assert tools.ensure(["coredns"]).path("coredns").read_bytes() == before
    assert os.access(program, os.X_OK)
    assert len(play.builds()) == 2
    assert "The cached coredns is damaged (bin/coredns); it is built anew." in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"files": {}}', '{"files": {"bin/coredns": {}}}', "\xff"])
def test_a_damaged_record_is_built_anew(play: Play, content: str | None) -> None:
    built = tools.ensure(["coredns"])
    record = built.entries["coredns"] / "entry.json"
    record.unlink()
    if content is not None:
        record.write_text(content, encoding="latin-1")
    tools.ensure(["coredns"])
    assert len(play.builds()) == 2
    tools.ensure(["coredns"])
    assert len(play.builds()) == 2


def test_a_copied_cache_with_other_times_is_good(play: Play) -> None:
    program = tools.ensure(["coredns"]).path("coredns")
    os.utime(program, ns=(1, 1))
    tools.ensure(["coredns"])
    assert len(play.builds()) == 1


def test_the_key_holds_what_decides_the_bytes(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "pins"
    shutil.copytree(tools.PINS, pins)
    monkeypatch.setattr(tools, "PINS", pins)

    def entry() -> Path:
        return tools.ensure(["pause"]).entries["pause"]

    seen = [entry()]
    play.say_version("go1.26.9")
    seen.append(entry())
    for name in ("main.go", "go.mod"):
        with (pins / "pause" / name).open("a") as file:
            file.write("// changed\n")
        seen.append(entry())
    (pins / "pause" / "go.sum").write_text("")
    seen.append(entry())
    tool = tools._tool("pause")
    monkeypatch.setattr(tools, "_tool", lambda _name: replace(tool, stamps={"main.version": "1"}))
    seen.append(entry())
    assert len(set(seen)) == len(seen)
    assert all(folder.is_dir() for folder in seen), "older entries stay: a node may run from them"


def test_without_go_it_says_so(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    (play.folder / "bin" / "go").unlink()
    monkeypatch.setattr(golang.shutil, "which", lambda *_args, **_named: None)
    with pytest.raises(Unavailable) as raised:
        tools.ensure(["coredns"])
    required = re.search(r"^go (\S+)", (tools.PINS / "coredns" / "go.mod").read_text(), re.M)
    assert required is not None
    assert raised.value.lines == [f"Go {required[1]} or newer, which builds the node's programs, is not installed"]
    assert "go.dev/dl" in raised.value.tip


def test_an_old_go_is_refused_by_the_newest_pin(play: Play) -> None:
    play.say_version("go1.24.9")
    with pytest.raises(Unavailable, match=r"need Go 1\.25\.\d+ or newer, and .*go is go1\.24\.9$"):
        tools.ensure()
    assert play.builds() == []


@pytest.mark.parametrize("version", ["go1.27rc1", "devel go1.28-abc123 Mon Nov  2", "go2.0"])
def test_a_newer_go_is_taken(play: Play, version: str) -> None:
    play.say_version(version)
    tools.ensure(["pause"])


@pytest.mark.parametrize("broken", ["exit 1", "exec /no/such/program", "echo 'bad' >&2; exit 2"])
def test_a_go_that_does_not_run_is_named(play: Play, broken: str) -> None:
    (play.folder / "bin" / "go").write_text(f"#!/bin/sh\n{broken}\n")
    with pytest.raises(Unavailable, match="bin/go does not run: ") as raised:
        tools.ensure(["pause"])
    assert len(raised.value.lines) == 1


@pytest.mark.parametrize(
    ("output", "error", "tip"),
    [
        ("# example.com/x\nx.go:1:2: undefined: y", Unavailable, ""),
        ("verifying m@v1: checksum mismatch\nSECURITY ERROR", Refusal, "go.sum"),
        ("go: m@v1: Get: dial tcp: lookup host: no such host", Unavailable, "network"),
        ("link: write: no space left on device", Unavailable, "GB"),
    ],
)
def test_a_failed_build_shows_the_end_of_what_go_said(
    play: Play, output: str, error: type[Exception], tip: str, tmp_path: Path
) -> None:
    (play.folder / "failure").write_text("\n".join([*(f"line {n} of it" for n in range(100)), output]) + "\n")
    with pytest.raises(error) as raised:
        tools.ensure(["coredns"])
    lines = raised.value.lines  # type: ignore[attr-defined]
    assert lines[0] == "Go could not build coredns; the end of what it said:"
    assert [line.strip() for line in lines][-len(output.splitlines()) :] == output.splitlines()
    assert len(lines) < 20 and "  line 0 of it" not in lines
    assert tip in raised.value.tip  # type: ignore[attr-defined]
    left = [path.name for path in (tmp_path / "cache" / "modelwharf" / "tools").iterdir()]
    assert left == [".coredns.lock"]

    (play.folder / "failure").unlink()
    assert tools.ensure(["coredns"]).path("coredns").is_file()


def test_unknown_names_are_mistakes(play: Play) -> None:
    with pytest.raises(
        Mistake, match=r"no tool 'kubernets' .*did you mean 'kubernetes'.*; there are kubernetes, cored"
    ):
        tools.ensure(["kubernets"])
    built = tools.ensure(["pause"])
    with pytest.raises(Mistake, match=r"'kubelets' is not among .*did you mean 'kubelet'"):
        built.path("kubelets")
    with pytest.raises(Mistake, match="'coredns' is not among"):
        built.path("coredns")  # a program of a tool that was not asked for
    for name in ("pause", "argocd"):
        with pytest.raises(Mistake, match=r"no.* built tool with an install manifest"):
            built.manifest(name)


def test_two_at_once_build_once(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[tools.Tools] = []
    threads = [threading.Thread(target=lambda: found.append(tools.ensure(["pause"]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(play.builds()) == 1
    assert found[0] == found[1] == found[2]
    assert "wait for another process that builds pause" in capsys.readouterr().err


def test_ctrl_c_ends_the_compilers_and_leaves_nothing(play: Play, tmp_path: Path) -> None:
    (play.folder / "slow").touch()
    code = "from ci.cluster.node import tools; tools.ensure(['pause'])"
    # A shell that runs these tests in the background has SIGINT ignored, and children would inherit that.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heed)
    child = play.folder / "child"
    _until(lambda: child.exists() and child.read_text().strip() != "")
    pid = int(child.read_text())
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in shown
    _until(lambda: not _runs(pid))
    assert [path.name for path in (tmp_path / "cache" / "modelwharf" / "tools").iterdir()] == [".pause.lock"]


def test_what_a_killed_build_left_is_removed(play: Play, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "modelwharf" / "tools" / ".pause-abc"
    left.mkdir(parents=True)
    (left / "part").touch()
    tools.ensure(["pause"])
    assert not left.exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(true, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_estimate_is_scaled_by_the_cores() -> None:
    every = tools._TOOLS
    two, eight = (int(re.search(r"about (\d+) minutes", tools.estimate(every, cores))[1]) for cores in (2, 8))  # type: ignore[index]
    assert two == pytest.approx(4 * eight, abs=2)
    assert tools.estimate([tools._tool("pause")], 2) == "some seconds"
    assert "1 core," in tools.estimate(every, 1)


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
@pytest.mark.slow
def test_pause_waits_collects_orphans_and_ends(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    go = golang.find("1.23")
    golang.build(go, tools.PINS / "pause", ["-o", str(program), "."], tmp_path / "temporary", "pause")
    process = subprocess.Popen([program])
    try:
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
    finally:
        process.kill()
        process.wait()
    header = program.read_bytes()[:64]
    assert header[:4] == b"\x7fELF"
    assert b"ld-linux" not in program.read_bytes(), "static: a sandbox image holds nothing else"
