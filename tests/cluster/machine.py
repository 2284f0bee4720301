"""What a machine is like, as far as a Kubernetes node changes it: to be the same before and after."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil

from ci.cluster.node import network
from ci.cluster.node.layout import HERE
from ci.shell import CommandFailed, run

_PROGRAMS = re.compile(r"^(etcd|kube|containerd|docker-registry|runc|pause|coredns|conmon|flannel)")
_SETTINGS = ("net/ipv4", "net/ipv6/conf", "net/bridge", "kernel/panic*", "kernel/keys", "vm/*", "fs/inotify")
_COUNTERS = re.compile(r"\[[0-9]+:[0-9]+\]")
_VOLATILE = re.compile(r"(vm/stat_refresh|vm/compact_memory|/flush$|tcp_fastopen_key)")


def snapshot() -> dict[str, list[str]]:
    """Return, by what they are about, sorted lines that describe the machine."""
    return {
        "processes": _processes(),
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "interfaces": sorted(_interfaces()),
        "routes": sorted(run(["ip", "route", "show", "table", "all"]).splitlines()),
        "network namespaces": run(["ip", "netns", "list"]).split(),
        "iptables": [line for family in ("iptables", "ip6tables") for line in rules(family)],
        "nftables": _nftables(),
        "settings": _settings(),
        "cgroups": sorted(str(group) for group in Path("/sys/fs/cgroup").glob("**/kubepods")),
        "folders": sorted(
            folder for folder in (*network.FOLDERS, str(HERE.state), str(HERE.run)) if Path(folder).exists()
        ),
        "strays": sorted(
            str(path)
            for folder in ("/run/containerd/s", "/var/lib/cni/results", "/var/log/containers")
            for path in Path(folder).glob("*")
        ),
    }


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """Return what came (+) and what went (-), one line for each."""
    found: list[str] = []
    for about, lines in after.items():
        found += [f"{about}: + {line}" for line in lines if line not in before[about]]
        found += [f"{about}: - {line}" for line in before[about] if line not in lines]
    return found


def rules(family: str) -> list[str]:
    """Return the rules and chains of a family, without what changes by itself: time and counters."""
    lines = [line for line in run([f"{family}-save"]).splitlines() if not line.startswith("#")]
    return [f"{family} {_COUNTERS.sub('', line).strip()}" for line in lines]


def _processes() -> list[str]:
    """Return the processes of programs that a node is made of; others come and go on every machine."""
    found: list[str] = []
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and (_PROGRAMS.match(Path(command[0]).name) or "ci.cluster.node.supervisor" in command):
            found.append(f"{pid} {' '.join(command)[:80]}")
    return found


def _interfaces() -> list[str]:
    return [
        f"{link['ifname']} {address.get('local')}/{address.get('prefixlen')}"
        for link in json.loads(run(["ip", "-json", "address"]))
        for address in (link.get("addr_info") or [{}])
    ]


def _nftables() -> list[str]:
    try:
        return run(["nft", "list", "tables"]).splitlines()
    except (CommandFailed, FileNotFoundError):
        return []


def _settings() -> list[str]:
    found: list[str] = []
    for pattern in _SETTINGS:
        for path in Path("/proc/sys").glob(pattern):
            for file in [path] if path.is_file() else path.rglob("*"):
                if file.is_file() and not _VOLATILE.search(str(file)):
                    try:
                        found.append(f"{file} = {file.read_text().strip()}")
                    except OSError:
                        continue  # write-only
    return sorted(found)
