"""The machine's network and kernel settings: what it was like before, what the node needs, and how to put it back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ci.cluster.node import counters, firewall
from ci.cluster.node.addresses import Addresses
from ci.cluster.node.layout import BRIDGE, Layout
from ci.errors import Unavailable
from ci.files import write_atomic
from ci.shell import CommandFailed, run

_BRIDGE_ADDRESS = "02:77:68:61:72:66"  # fixed: a bridge otherwise takes over the lowest one of the pods it connects
_MODULES = {"overlay": Path("/sys/module/overlay"), "br_netfilter": Path("/proc/sys/net/bridge")}

# What the node needs. None: changed by the kubelet or by turning forwarding on, so it has to be put back as well.
SYSCTLS: dict[str, str | None] = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.accept_redirects": None,
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "fs.inotify.max_user_instances": "1024",
    "vm.overcommit_memory": None,
    "vm.panic_on_oom": None,
    "kernel.panic": None,
    "kernel.panic_on_oops": None,
    "kernel.keys.root_maxkeys": None,
    "kernel.keys.root_maxbytes": None,
}

# Folders outside of ours which programs of the node make without asking.
FOLDERS = (
    *("/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods", "/run/containerd", "/run/runc"),
    *("/run/netns", "/run/kubernetes", "/run/flannel", "/usr/libexec/kubernetes", "/opt/cni", "/etc/cni"),
)


@dataclass(frozen=True)
class Before:
    """What the machine was like before the node."""

    boot: str
    sysctls: dict[str, str]
    modules: list[str]  # those that were loaded
    folders: list[str]  # those that were there
    rules: dict[str, firewall.Rules]  # by the program that shows them


def remember(layout: Layout) -> Before:
    """Write down what the machine is like, once in its life between two starts; return what was written."""
    known = recall(layout)
    if known and known.boot == _boot():
        return known
    now = Before(
        boot=_boot(),
        sysctls={name: value for name in SYSCTLS if (value := sysctl(name)) is not None},
        modules=[name for name, sign in _MODULES.items() if sign.exists()],
        # After a restart of the machine these may be ours from before it; what was written down at first holds.
        folders=known.folders if known else [folder for folder in FOLDERS if Path(folder).exists()],
        rules={family: firewall.read(family) for family in firewall.FAMILIES},
    )
    write_atomic(layout.before, json.dumps(asdict(now), indent=1))
    return now


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def recall(layout: Layout) -> Before | None:
    """Return what `remember` wrote; None when it never did."""
    try:
        raw = json.loads(layout.before.read_text())
    except FileNotFoundError:
        return None
    return Before(**{field.name: raw[field.name] for field in fields(Before)})  # other releases may write more


def prepare(addresses: Addresses) -> str:
    """Load the kernel's modules, set its settings, make the bridge; return what was done, in words.

    Raises Unavailable when this kernel cannot carry a node.
    """
    done: list[str] = []
    for module, sign in _MODULES.items():
        if not sign.exists():
            _load(module, sign)
            done.append(module)
    for name, value in SYSCTLS.items():
        if value is not None and sysctl(name) != value and not _enough(name, value):
            _set(name, value)
            done.append(name)
    if _make_bridge(addresses):
        done.append(BRIDGE)
    if firewall.admit(BRIDGE, addresses.pods, addresses.services):
        done.append("firewall")
    return ", ".join(done) or "already there"


def _enough(name: str, value: str) -> bool:
    current = sysctl(name)
    return name.startswith("fs.") and current is not None and int(current) >= int(value)


def _load(module: str, sign: Path) -> None:
    with contextlib.suppress(CommandFailed, FileNotFoundError):  # what counts is whether the kernel has it then
        run(["modprobe", module])
    if not sign.exists() and not _built_in(module):
        raise Unavailable(f"this kernel has no `{module}`, which a node needs", tip="use another provider or machine")


def _built_in(module: str) -> bool:
    return module == "overlay" and "overlay" in Path("/proc/filesystems").read_text().split()


def sysctl(name: str) -> str | None:
    """Return a setting of the kernel; None where it has no such setting."""
    path = _sysctl_path(name)
    return path.read_text().strip() if path.is_file() else None


def _sysctl_path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _set(name: str, value: str) -> None:
    try:
        _sysctl_path(name).write_text(value)
    except OSError as error:
        raise Unavailable(f"{name} cannot be set to {value}: {error.strerror}") from None


def _make_bridge(addresses: Addresses) -> bool:
    """Make the bridge of the pods; its address is the node's. Tell whether it was missing."""
    fresh = not Path(f"/sys/class/net/{BRIDGE}").exists()
    if fresh:
        run(["ip", "link", "add", BRIDGE, "address", _BRIDGE_ADDRESS, "mtu", str(addresses.mtu), "type", "bridge"])
    run(["ip", "address", "replace", f"{addresses.node}/{addresses.prefix}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    return fresh


def restore(before: Before) -> list[str]:
    """Remove the bridge and the firewall's rules, and put the kernel's settings back; return it in words.

    The pods must be gone. A machine that was started anew since has none of it left.
    """
    done: list[str] = []
    if before.boot != _boot():
        return done
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run(["ip", "link", "delete", BRIDGE])
        done.append(f"bridge {BRIDGE}")
    done += firewall.clean(before.rules)
    counters.remove()
    changed = [name for name, value in before.sysctls.items() if sysctl(name) not in (value, None)]
    for name, value in before.sysctls.items():  # each is looked at again: turning forwarding off changes others
        if sysctl(name) not in (value, None):
            _set(name, value)
    if changed:
        done.append(f"{len(changed)} kernel settings put back")
    for module in _MODULES:
        if module not in before.modules and shutil.which("modprobe"):
            with contextlib.suppress(CommandFailed):  # somebody else uses it by now
                run(["modprobe", "--remove", module])
    return done


def forget_folders(before: Before) -> list[str]:
    """Remove the folders that were not there before and hold nothing but dead sockets any more; return them.

    One in which somebody listens is in use by now (a containerd that came with Docker meanwhile) and stays as it is.
    """
    gone: list[str] = []
    for name in FOLDERS:
        if name in before.folders or not Path(name).is_dir():
            continue
        sockets = [file for file in Path(name).rglob("*") if file.is_socket()]
        if any(_listens(file) for file in sockets):
            continue
        for file in sockets:
            file.unlink()
        for folder, _, _ in os.walk(name, topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()
        if not Path(name).exists():
            gone.append(name)
    return gone


def _listens(file: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(1.0)
        try:
            one.connect(str(file))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # of another kind, or full: somebody has it
            return True
    return True
