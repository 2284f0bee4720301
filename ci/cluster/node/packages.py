"""The Debian packages of the node: what is missing is listed, then installed, and nothing is started by that.

etcd, containerd, docker-registry and Redis come with services that their packages start and enable. The node runs its
own under its supervisor, so while apt works a policy of Debian's forbids to start, stop or restart any service, and the
services of packages that were not there before are not enabled for the next start of the machine either. What was there
before goes on as it is: it is neither upgraded, restarted nor removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from ci.console import say, step
from ci.errors import Mistake, Unavailable
from ci.images.layers import locked
from ci.shell import CommandFailed, run

# What the node's own parts need. A package that provides another's name (Docker's containerd.io) is as good.
NODE = (
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "docker-registry",
    "etcd-server",
    "iproute2",
    "ipset",
    "iptables",
    "mmdebstrap",
    "runc",
)
POLICY = Path("/usr/sbin/policy-rc.d")  # asked by invoke-rc.d and deb-systemd-invoke before they touch a service
_FORBID = """#!/bin/sh
# Written by Modelwharf while it installs packages, and removed after that: no service is started or restarted.
exit 101
"""
_SAVED = ".before-modelwharf"
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",  # else Ubuntu restarts services of its own accord after an installation
    "LC_ALL": "C.UTF-8",
}
_INSTALL = (
    "install",
    "--yes",
    "--quiet",
    "--no-install-recommends",
    "--no-upgrade",
    "--no-remove",  # a conflict (Docker's own containerd) ends here, not in Docker's removal
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=DPkg::Lock::Timeout=300",
)
_UPDATE = ("update", "--quiet", "--option=APT::Update::Error-Mode=any", "--option=DPkg::Lock::Timeout=300")
_TIMEOUT_S = 1800


def missing(names: Iterable[str] = NODE) -> list[str]:
    """Return those of the packages `names` that are neither installed nor provided by an installed one.

    Raises Unavailable where there is no dpkg.
    """
    wanted = list(dict.fromkeys(names))
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise Unavailable(
            f"the node needs these Debian packages, and this machine has no apt: {', '.join(wanted)}",
            tip="use a Debian-like machine, or another provider: `wharf up --target cluster --provider kind`",
        )
    have: set[str] = set()
    for line in run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}|${Package}|${Provides}\\n"]).splitlines():
        status, package, provided = line.split("|", 2)
        if status.startswith(("ii", "hi")):
            have |= {package, *(one.split()[0].partition(":")[0] for one in provided.split(",") if one.strip())}
    return [name for name in wanted if name not in have]


def ensure(names: Iterable[str] = NODE, *, policy: Path = POLICY) -> list[str]:
    """Install those of the packages `names` that are missing, and return them.

    Starts, restarts and removes nothing. Raises Unavailable, in one line with the packages, where there is no apt, the
    user is not root, or apt cannot install them (no network, no such package).
    """
    lacking = missing(names)
    if not lacking:
        if _is_left(policy) and os.geteuid() == 0:  # killed behind the installation: no service of any package starts
            with locked("packages"), _permitted(policy):
                _restore(policy)
        return []
    listed = " ".join(lacking)
    if os.geteuid() != 0:
        raise Unavailable(
            f"the node needs these Debian packages, and only root may install them: {listed}",
            tip=f"sudo apt-get install --no-install-recommends {listed}",
        )
    with locked("packages"):
        lacking = missing(lacking)  # another process may have installed them meanwhile
        if not lacking:
            return []
        say(f"  Debian packages to install: {' '.join(lacking)}")
        with step(f"install {len(lacking)} Debian package{'s' * (len(lacking) > 1)}"), _no_services(policy):
            _install(lacking)
        _leave_disabled(lacking)
    return lacking


def _install(names: Sequence[str]) -> None:
    try:
        _apt(*_UPDATE)
        stale = None
    except CommandFailed as fault:
        stale = fault  # the lists at hand may do: only a failed installation is a fault
    try:
        _apt(*_INSTALL, *names)
    except CommandFailed as fault:
        reasons = _reasons(stale) if stale is not None else []
        reasons = reasons[:1] + _reasons(fault)[:2]
        raise Unavailable(
            f"apt-get could not install {' '.join(names)}: {'; '.join(reasons)}",
            tip=f"see what `apt-get update` and `apt-get install --no-install-recommends {' '.join(names)}` say",
        ) from fault
    left = missing(names)
    if left:
        raise Unavailable(f"apt-get ended without an error, and these packages are not installed: {' '.join(left)}")


def _apt(*arguments: str) -> None:
    try:
        run(["apt-get", *arguments], env=_ENVIRONMENT, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as late:
        raise CommandFailed(["apt-get", *arguments], -1, f"E: no end after {_TIMEOUT_S} s") from late


def _reasons(fault: CommandFailed) -> list[str]:
    """Return what apt names as errors; all of its last line when it names none."""
    lines = [line.strip() for line in fault.stderr.splitlines() if line.strip()]
    return [line[3:] for line in lines if line.startswith("E: ")] or lines[-1:] or [f"it ended with {fault.code}"]


@contextmanager
def _no_services(policy: Path) -> Generator[None]:
    """Forbid packages to start or restart services while the block runs; a policy of the machine's own comes back.

    Raises Mistake when the policy cannot be written.
    """
    with _permitted(policy):
        _restore(policy)  # after a run that was killed
        if policy.exists():
            policy.rename(_saved(policy))
        policy.write_text(_FORBID)
        policy.chmod(0o755)
    try:
        yield
    finally:
        _restore(policy)


@contextmanager
def _permitted(policy: Path) -> Generator[None]:
    try:
        yield
    except OSError as fault:
        raise Mistake(f"{policy}: {fault.strerror}: services could not be kept from starting") from fault


def _saved(policy: Path) -> Path:
    return policy.with_name(policy.name + _SAVED)


def _is_left(policy: Path) -> bool:
    return policy.is_file() and policy.read_text(errors="replace") == _FORBID


def _restore(policy: Path) -> None:
    if _is_left(policy):
        policy.unlink()
    if _saved(policy).exists():
        _saved(policy).rename(policy)


def _leave_disabled(names: Sequence[str]) -> None:
    """Keep the services of the packages that were just installed from starting with the machine."""
    if shutil.which("systemctl") is None:
        return
    files = run(["dpkg-query", "-L", *names]).splitlines()
    units = sorted({Path(file).name for file in files if "/systemd/system/" in file and file.endswith(".service")})
    units = [unit for unit in units if not unit.endswith("@.service")]
    if not units:
        return
    try:
        run(["systemctl", "disable", "--quiet", *units])
    except CommandFailed as fault:  # they are installed and do not run: no reason to stop here
        say(
            f"  They start with this machine, and systemctl could not change that: {' '.join(units)}: {fault.lines[-1]}"
        )
