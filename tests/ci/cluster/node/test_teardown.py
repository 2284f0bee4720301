"""What is recognised as the node's own when it is removed."""

from __future__ import annotations

import json
import socket
import struct
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest

from ci.cluster.node import counters, network, teardown
from ci.cluster.node.layout import Layout
from ci.cluster.node.network import Before
from ci.cluster.node.teardown import mounts_below
from ci.errors import Unavailable

MOUNTINFO = """\
23 29 0:21 / /proc rw,relatime - proc proc rw
79 29 254:1 / /var/lib/modelwharf rw shared:1 - ext4 /dev/vdb rw
80 29 254:0 /var/lib/modelwharf/kubelet /var/lib/modelwharf/kubelet rw shared:1 - ext4 /dev/vda rw
81 80 0:50 / /var/lib/modelwharf/kubelet/pods/1/volumes/a\\040b rw - tmpfs tmpfs rw
82 29 0:51 / /run/modelwharf/containerd/rootfs rw - overlay overlay rw
83 29 0:52 / /var/lib/modelwharf-of-others rw - tmpfs tmpfs rw
"""


def test_mounts_below_our_folders_are_found_the_deepest_first() -> None:
    found = teardown.mounts_below([Path("/var/lib/modelwharf"), Path("/run/modelwharf")], MOUNTINFO)
    assert found == [
        "/run/modelwharf/containerd/rootfs",
        "/var/lib/modelwharf/kubelet/pods/1/volumes/a b",
        "/var/lib/modelwharf/kubelet",
    ]


def test_a_path_in_other_letters_is_read_as_it_is() -> None:
    assert teardown.mounts_below([Path("/var/lib/modelwharf")], "1 2 0:1 / /var/lib/modelwharf/größe\\040b rw\n") == [
        "/var/lib/modelwharf/größe b"
    ]


def test_a_state_behind_a_link_is_emptied_and_the_link_stays(tmp_path: Path) -> None:
    disk, state = tmp_path / "disk", tmp_path / "state"
    (disk / "etcd").mkdir(parents=True)
    (disk / "before.json").touch()
    state.symlink_to(disk)
    assert teardown.remove(state, last=state / "before.json")
    assert state.is_symlink()
    assert list(disk.iterdir()) == []
    assert not teardown.remove(state, last=state / "before.json")


def test_nothing_is_removed_while_something_is_mounted_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    (data / "kept").touch()
    state.symlink_to(data)
    mounted = f"9 1 0:9 / {data.resolve()}/kubelet/pods/1/volume-subpaths rw - ext4 /dev/vda rw"
    monkeypatch.setattr(teardown, "mounts_below", lambda folders, _: mounts_below(folders, mounted))
    with pytest.raises(Unavailable, match="is still mounted"):
        teardown.remove(state, last=state / "before.json")
    assert (data / "kept").exists()


def test_the_socket_of_a_shim_follows_from_its_command() -> None:
    command = ["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "abc", "-address", "/run/x/c.sock"]
    # sha256 of "/run/x/c.sock/k8s.io/abc"
    assert teardown.socket_of(command) == Path(
        "/run/containerd/s/98fc2abb24d936245c57fe16ff5c3ee10fb4b502eda53f41b4f9e5fd8ee759c7"
    )


def test_without_a_node_nothing_is_removed(tmp_path: Path) -> None:
    assert teardown.take_down(Layout(tmp_path / "state", tmp_path / "run")) == []


def test_folders_of_others_stay_and_empty_ones_of_ours_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(tmp_path / name) for name in ("theirs", "ours", "used")]
    monkeypatch.setattr(network, "FOLDERS", tuple(names))
    for name in names:
        Path(name, "below").mkdir(parents=True)
    Path(names[2], "below", "file").touch()
    before = Before("boot", {}, [], [names[0]], {})
    assert network.forget_folders(before) == [names[1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs", "used"]


def test_a_folder_in_which_somebody_listens_by_now_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="w-") as folder:  # short: the path of a socket has 108 bytes at most
        live, dead = Path(folder, "live"), Path(folder, "dead")
        monkeypatch.setattr(network, "FOLDERS", (str(live), str(dead)))
        for one in (live, dead):
            (one / "empty").mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as theirs, socket.socket(socket.AF_UNIX) as ended:
            theirs.bind(str(live / "containerd.sock"))
            theirs.listen()
            ended.bind(str(dead / "shim.sock"))
            ended.close()
            assert network.forget_folders(Before("boot", {}, [], [], {})) == [str(dead)]
        assert sorted(path.name for path in live.iterdir()) == ["containerd.sock", "empty"]


def test_what_the_machine_was_like_is_written_down_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(network.firewall, "read", lambda family: {"filter": {"chains": ["INPUT"], "rules": [family]}})
    first = network.remember(layout)
    assert first.rules["iptables"]["filter"]["rules"] == ["iptables"]
    assert "net.ipv4.ip_forward" in first.sysctls
    monkeypatch.setattr(network.firewall, "read", lambda family: {"filter": {"chains": ["KUBE-1"], "rules": []}})
    assert network.remember(layout) == first == network.recall(layout)


def test_after_a_restart_of_the_machine_it_is_written_down_anew_but_for_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(network.firewall, "read", lambda family: {})
    old = Before("an older start", {"kernel.panic": "77"}, [], ["/somewhere"], {})
    layout.state.mkdir()
    layout.before.write_text(json.dumps(asdict(old)))
    now = network.remember(layout)
    assert now.folders == ["/somewhere"]
    assert now.sysctls.get("kernel.panic") != "77"
    assert network.restore(old) == []  # its settings went with that start


def test_the_message_that_deletes_a_counter_has_its_length_in_front() -> None:
    message = counters.deletion("abc")
    length, kind = struct.unpack_from("=IH", message)
    assert (length, kind) == (len(message), 0x703)
    assert message[20:] == struct.pack("=HH", 8, 1) + b"abc\0"
