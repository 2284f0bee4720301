"""The rules of iptables: admit the pods' traffic, and remove what the node's parts made.

kube-proxy, the kubelet and the CNI plugins make chains of their own and rules that lead to them. What
was there before the node is never touched.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import dataclass, field

from ci.shell import CommandFailed, run

COMMENT = "modelwharf"
FAMILIES = ("iptables", "ip6tables")
_OURS = re.compile(r"^(KUBE-|CNI-)")
_CNI = "CNI-"
_NETWORK = re.compile(r'name: \\"([^"\\]*)\\"')  # the CNI plugins say in a comment whose rule it is
_WORD = re.compile(r'"[^"]*"|\S+')

# A table: its chains (with the policy of the built-in ones) and its rules, both as iptables-save writes them.
Rules = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Removal:
    """What has to go from one table."""

    rules: list[str] = field(default_factory=list[str])  # as they were added: `-A FORWARD …`
    chains: list[str] = field(default_factory=list[str])


def read(family: str) -> Rules:
    """Return every rule that `iptables` or `ip6tables` shows; none where the kernel lacks the family."""
    try:
        return parse(run([f"{family}-save"]))
    except CommandFailed:
        return {}


def parse(text: str) -> Rules:
    """Read what iptables-save writes."""
    tables: Rules = {}
    table: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), {"chains": [], "rules": []})
        elif line.startswith(":"):
            table["chains"].append(line[1:].split()[0])
        elif line.startswith("-A "):
            table["rules"].append(line.strip())
    return tables


def removal(before: Rules, now: Rules) -> dict[str, Removal]:
    """Return, by table, what the node's parts added since `before`: their chains, and the rules that lead there."""
    found: dict[str, Removal] = {}
    for name, table in now.items():
        old = before.get(name, {"chains": [], "rules": []})
        others = _of_other_networks(table)
        chains = [c for c in table["chains"] if _OURS.match(c) and c not in old["chains"] and c not in others]
        left = list(old["rules"])
        rules: list[str] = []
        for rule in table["rules"]:
            if rule in left:
                left.remove(rule)
            elif _chain(rule) not in chains and (_target(rule) in chains or _is_ours(rule)):
                rules.append(rule)
        if chains or rules:
            found[name] = Removal(rules, chains)
    return found


def _of_other_networks(table: dict[str, list[str]]) -> set[str]:
    """Return the chains of CNI plugins that belong to a network of somebody else (Podman), or are shared with one."""
    theirs: set[str] = set()
    for rule in table["rules"]:
        named = _NETWORK.search(rule)
        if named and named[1] != COMMENT:
            theirs |= {chain for chain in (_chain(rule), _target(rule)) if chain.startswith(_CNI)}
    # They lead on to chains that all networks share (CNI-HOSTPORT-SETMARK).
    while more := {_target(r) for r in table["rules"] if _chain(r) in theirs and _target(r).startswith(_CNI)} - theirs:
        theirs |= more
    if theirs:
        theirs |= {chain for chain in table["chains"] if chain.startswith(f"{_CNI}HOSTPORT-")}
    return theirs


def _words(rule: str) -> list[str]:
    return _WORD.findall(rule)


def _chain(rule: str) -> str:
    return _words(rule)[1]


def _target(rule: str) -> str:
    words = _words(rule)
    return next((after for word, after in itertools.pairwise(words) if word in ("-j", "-g")), "")


def _is_ours(rule: str) -> bool:
    words = _words(rule)
    comments = [after.strip('"') for word, after in itertools.pairwise(words) if word == "--comment"]
    return COMMENT in comments


def script(removals: dict[str, Removal]) -> str:
    """Return what `iptables-restore --noflush` reads to carry `removals` out."""
    lines: list[str] = []
    for table, one in removals.items():
        lines.append(f"*{table}")
        # To name a chain makes and empties it: no rule leads from one to another any more when they are deleted.
        lines += [f":{chain} - [0:0]" for chain in one.chains]
        lines += [f"-D{rule[2:]}" for rule in one.rules]
        lines += [f"-X {chain}" for chain in one.chains]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def clean(before: dict[str, Rules]) -> list[str]:
    """Remove what was added since `before`; return it in words. Raises CommandFailed."""
    done: list[str] = []
    for family in FAMILIES:
        removals = removal(before.get(family, {}), read(family))
        if removals:
            run([f"{family}-restore", "--noflush", "--wait"], stdin=script(removals))
            chains, rules = (sum(len(part) for part in parts) for parts in _parts(removals))
            done.append(f"{chains} chains and {rules} rules of {family}")
        _remove_empty_tables(family, before.get(family, {}))
    return done


def _parts(removals: dict[str, Removal]) -> tuple[list[list[str]], list[list[str]]]:
    return [one.chains for one in removals.values()], [one.rules for one in removals.values()]


def _remove_empty_tables(family: str, before: Rules) -> None:
    """Remove the tables of nftables that came with our rules and hold none any more, to leave nothing behind."""
    if not shutil.which("nft"):
        return
    of_nft = "ip" if family == "iptables" else "ip6"
    for table, content in read(family).items():
        if table not in before and not content["rules"] and all(chain.isupper() for chain in content["chains"]):
            try:
                listed = json.loads(run(["nft", "--json", "list", "table", of_nft, table]))["nftables"]
            except CommandFailed:
                continue  # not of nftables: the older iptables has its tables for good
            if not any("rule" in one for one in listed):
                run(["nft", "delete", "table", of_nft, table])


def admit(bridge: str, pods: str, services: str) -> bool:
    """Let the pods speak with each other, the world and the API server where the machine drops what it does not know.

    Nobody else on the machine's networks gets to them: forwarding, which pods need, would make the machine a router
    into the ranges `pods` and `services`, where MLflow asks for no password. What a network policy refuses is refused
    before these. Tell whether anything was added.
    """
    mark = ["-m", "comment", "--comment", COMMENT]
    answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    # Before the addresses of Services are translated. What this machine sends to itself has its own source.
    foreign = ["!", "-i", bridge, "-m", "addrtype", "!", "--src-type", "LOCAL"]
    added = [
        _ensure("filter", ["-A", "FORWARD"], ["-i", bridge, *mark, "-j", "ACCEPT"]),
        _ensure("filter", ["-A", "FORWARD"], ["-o", bridge, *answers, *mark, "-j", "ACCEPT"]),
        _ensure("filter", ["-I", "INPUT"], ["-i", bridge, "-p", "tcp", "--dport", "6443", *mark, "-j", "ACCEPT"]),
        *(
            _ensure("mangle", ["-I", "PREROUTING"], ["-d", to, *foreign, *mark, "-j", "DROP"])
            for to in (pods, services)
        ),
    ]
    return any(added)


def _ensure(table: str, where: list[str], rule: list[str]) -> bool:
    command = ["iptables", "--wait", "--table", table]
    try:
        run([*command, "-C", where[1], *rule])
        return False
    except CommandFailed:
        run([*command, *where, *rule])
        return True
