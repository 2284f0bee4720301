"""The node's Debian packages, with scripts that play dpkg, apt and systemd on any machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ci.cluster.node import packages
from ci.errors import Mistake, Unavailable

DPKG = r"""#!/bin/sh
if [ "$1" = -L ]; then
    shift
    for package; do [ ! -e "$PLAY/files-$package" ] || cat "$PLAY/files-$package"; done
else
    cat "$PLAY/status"
fi
"""
APT = r"""#!/bin/sh
echo "$DEBIAN_FRONTEND|$NEEDRESTART_SUSPEND|$*" >> "$PLAY/apt"
if [ -e "$PLAY/fails-$1" ]; then cat "$PLAY/fails-$1" >&2; exit 100; fi
[ "$1" = install ] || exit 0
"$POLICY" etcd start; echo $? > "$PLAY/policy-said"
[ -e "$PLAY/installs-nothing" ] && exit 0
for word; do
    case "$word" in -*|install) ;; *) echo "ii |$word|" >> "$PLAY/status" ;; esac
done
"""
SYSTEMCTL = r"""#!/bin/sh
echo "$*" >> "$PLAY/systemctl"
[ ! -e "$PLAY/fails-systemctl" ] || { echo "Failed to disable" >&2; exit 1; }
"""
STATUS = """ii |iptables|
ii |containerd.io|containerd (= 1.7), runc
rc |etcd-server|
un |redis-server|
hi |conntrack|
ii |mount:amd64|
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "play"
    folder.mkdir()
    (folder / "status").write_text(STATUS)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {"dpkg-query": DPKG, "apt-get": APT, "systemctl": SYSTEMCTL}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PLAY", str(folder))
    monkeypatch.setenv("POLICY", str(tmp_path / "policy-rc.d"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "policy-rc.d"


def _said(play: Path, name: str) -> list[str]:
    return (play / name).read_text().splitlines() if (play / name).exists() else []


def test_missing_is_what_is_neither_installed_nor_provided(play: Path) -> None:
    asked = ["iptables", "containerd", "runc", "etcd-server", "redis-server", "conntrack", "no-such"]
    assert packages.missing(asked) == ["etcd-server", "redis-server", "no-such"]


def test_nothing_is_touched_when_nothing_is_missing(play: Path, policy: Path, capsys: pytest.CaptureFixture) -> None:
    assert packages.ensure(["iptables", "containerd"], policy=policy) == []
    assert _said(play, "apt") == []
    assert capsys.readouterr().err == ""


def test_what_is_missing_is_listed_and_installed(play: Path, policy: Path, capsys: pytest.CaptureFixture) -> None:
    assert packages.ensure(["iptables", "ipset", "etcd-server"], policy=policy) == ["ipset", "etcd-server"]
    update, install = _said(play, "apt")
    assert update.startswith("noninteractive|1|update ")
    assert install.startswith("noninteractive|1|install --yes ")
    words = install.split("|")[2].split()
    assert {"--no-install-recommends", "--no-upgrade", "--no-remove"} < set(words)
    assert words[-2:] == ["ipset", "etcd-server"]
    shown = capsys.readouterr().err
    assert shown.index("Debian packages to install: ipset etcd-server") < shown.index("install 2 Debian packages")
    assert packages.ensure(["ipset", "etcd-server"], policy=policy) == []
    assert len(_said(play, "apt")) == 2


def test_no_service_may_start_while_apt_works(play: Path, policy: Path) -> None:
    packages.ensure(["etcd-server"], policy=policy)
    assert _said(play, "policy-said") == ["101"]
    assert not policy.exists()
    assert list(policy.parent.glob("policy-rc.d*")) == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_policy_of_the_machine_comes_back(play: Path, policy: Path, fails: bool) -> None:
    own = "#!/bin/sh\nexit 0\n"
    policy.write_text(own)
    policy.chmod(0o750)
    if fails:
        (play / "fails-install").write_text("E: no\n")
        with pytest.raises(Unavailable):
            packages.ensure(["etcd-server"], policy=policy)
    else:
        packages.ensure(["etcd-server"], policy=policy)
        assert _said(play, "policy-said") == ["101"]
    assert policy.read_text() == own
    assert policy.stat().st_mode & 0o777 == 0o750
    assert list(policy.parent.glob("policy-rc.d*")) == [policy]


def test_what_a_killed_run_left_is_put_right(play: Path, policy: Path) -> None:
    own = "#!/bin/sh\nexit 104\n"
    policy.write_text(packages._FORBID)
    policy.with_name("policy-rc.d.before-modelwharf").write_text(own)
    packages.ensure(["etcd-server"], policy=policy)
    assert policy.read_text() == own
    assert list(policy.parent.glob("policy-rc.d*")) == [policy]


def test_what_a_run_left_that_was_killed_behind_the_installation_is_put_right(play: Path, policy: Path) -> None:
    policy.write_text(packages._FORBID)
    assert packages.ensure(["iptables"], policy=policy) == []  # nothing is missing any more
    assert not policy.exists()
    assert _said(play, "apt") == []
    policy.write_text(own := "#!/bin/sh\nexit 104\n")
    packages.ensure(["iptables"], policy=policy)
    assert policy.read_text() == own


def test_a_policy_that_cannot_be_written_ends_it(play: Path, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"no-such-folder/policy-rc\.d: No such file .*services could not be kept"):
        packages.ensure(["etcd-server"], policy=tmp_path / "no-such-folder" / "policy-rc.d")
    assert len(_said(play, "apt")) == 0


def test_new_services_do_not_start_with_the_machine(play: Path, policy: Path) -> None:
    (play / "files-etcd-server").write_text(
        "/usr/bin/etcd\n/lib/systemd/system/etcd.service\n/usr/lib/systemd/system/etcd@.service\n/usr/share/doc/x.service\n"
    )
    (play / "files-iptables").write_text("/lib/systemd/system/iptables.service\n")  # was there before
    packages.ensure(["iptables", "etcd-server"], policy=policy)
    assert _said(play, "systemctl") == ["disable --quiet etcd.service"]


def test_services_that_stay_enabled_are_named(play: Path, policy: Path, capsys: pytest.CaptureFixture) -> None:
    (play / "files-etcd-server").write_text("/lib/systemd/system/etcd.service\n")
    (play / "fails-systemctl").touch()
    assert packages.ensure(["etcd-server"], policy=policy) == ["etcd-server"]
    assert "systemctl could not change that: etcd.service: Failed to disable" in capsys.readouterr().err


def test_only_root_installs(play: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unavailable) as raised:
        packages.ensure(["iptables", "ipset", "etcd-server"], policy=policy)
    assert raised.value.lines == [
        "the node needs these Debian packages, and only root may install them: ipset etcd-server"
    ]
    assert raised.value.tip == "sudo apt-get install --no-install-recommends ipset etcd-server"
    assert _said(play, "apt") == []
    assert packages.ensure(["iptables"], policy=policy) == []


def test_without_apt_it_says_so(play: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda _name: None)
    with pytest.raises(Unavailable) as raised:
        packages.ensure(["ipset", "runc"], policy=policy)
    assert raised.value.lines == ["the node needs these Debian packages, and this machine has no apt: ipset, runc"]


def test_without_a_network_one_line_says_why(play: Path, policy: Path) -> None:
    (play / "fails-update").write_text("W: old\nE: Failed to fetch InRelease  Temporary failure resolving 'mirror'\n")
    (play / "fails-install").write_text("Reading package lists...\nE: Unable to locate package ipset\n")
    with pytest.raises(Unavailable) as raised:
        packages.ensure(["ipset"], policy=policy)
    assert raised.value.lines == [
        "apt-get could not install ipset: Failed to fetch InRelease  Temporary failure resolving 'mirror'; "
        "Unable to locate package ipset"
    ]
    assert "apt-get update" in raised.value.tip


def test_old_lists_are_no_fault_when_they_do(play: Path, policy: Path) -> None:
    (play / "fails-update").write_text("E: Failed to fetch\n")
    assert packages.ensure(["ipset"], policy=policy) == ["ipset"]


def test_an_apt_that_installs_nothing_is_noticed(play: Path, policy: Path) -> None:
    (play / "installs-nothing").touch()
    with pytest.raises(Unavailable, match=r"are not installed: ipset$"):
        packages.ensure(["ipset"], policy=policy)


def test_an_apt_that_never_ends_is_noticed(play: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(command: list[str], **_named: object) -> str:
        if command[0] == "apt-get":
            raise packages.subprocess.TimeoutExpired(command, 1)
        return ""

    monkeypatch.setattr(packages, "run", late)
    with pytest.raises(Unavailable, match=r"could not install ipset: no end after \d+ s"):
        packages.ensure(["ipset"], policy=policy)
