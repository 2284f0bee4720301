"""The named packet counters (nfacct) that kube-proxy makes beside its rules; no installed program removes them."""

from __future__ import annotations

import errno
import os
import socket
import struct

from ci.errors import Unavailable

_NAMES = ("ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts")

# From linux/netfilter/nfnetlink.h and nfnetlink_acct.h.
_NETLINK_NETFILTER = 12
_SUBSYSTEM, _DELETE, _ATTRIBUTE_NAME = 7, 3, 1
_REQUEST_WITH_ANSWER = 0x1 | 0x4
_GONE = {0, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT}


def remove() -> None:
    """Remove kube-proxy's counters, where this kernel has any. Raises Unavailable while a rule still uses one."""
    try:
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError:
        return  # a kernel without netfilter's netlink has no counters
    with link:
        link.settimeout(5.0)
        link.bind((0, 0))
        for name in _NAMES:
            link.send(deletion(name))
            _, _, code = struct.unpack_from("=QQi", link.recv(4096))
            if -code not in _GONE:
                raise Unavailable(f"the packet counter {name} cannot be removed: {os.strerror(-code)}")


def deletion(name: str) -> bytes:
    """Return the netlink message that deletes the counter `name`."""
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), _ATTRIBUTE_NAME) + text
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0) + attribute + b"\0" * (-len(attribute) % 4)
    return struct.pack("=IHHII", 16 + len(body), _SUBSYSTEM << 8 | _DELETE, _REQUEST_WITH_ANSWER, 1, 0) + body
