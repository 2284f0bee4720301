"""The node's rules at work, in network namespaces of their own: a machine with two pods, and a neighbour of it.

Needs no root where users may have namespaces; skipped where they may not, or without iptables.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
_UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"]

SCRIPT = r"""
set -e
mount -t tmpfs tmpfs /run  # the lock file of iptables
ip link set lo up
unshare -n sleep 60 & neighbour=$!
unshare -n sleep 60 & pod=$!
unshare -n sleep 60 & other=$!
pids="$neighbour $pod $other"
trap 'kill $pids' EXIT
sleep 0.5
ip link add wharf-br0 type bridge
ip address add 10.96.0.1/16 dev wharf-br0
ip link set wharf-br0 up
plug() {  # namespace, address, gateway
    ip link add "w$1" type veth peer name eth0 netns "$1"
    nsenter -t "$1" -n ip link set lo up
    nsenter -t "$1" -n ip address add "$2" dev eth0
    nsenter -t "$1" -n ip link set eth0 up
}
plug $pod 10.96.0.9/16; ip link set w$pod master wharf-br0 up
plug $other 10.96.0.10/16; ip link set w$other master wharf-br0 up
plug $neighbour 192.0.2.2/24; ip address add 192.0.2.1/24 dev w$neighbour; ip link set w$neighbour up
for each in $pod $other; do nsenter -t $each -n ip route add default via 10.96.0.1; done
nsenter -t $neighbour -n ip route add 10.96.0.0/15 via 192.0.2.1
ip route add default via 192.0.2.2
echo 1 >/proc/sys/net/ipv4/ip_forward
[ ! -e /proc/sys/net/bridge ] || echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
iptables -P FORWARD DROP  # as Docker leaves it
for chain in PREROUTING OUTPUT; do  # a Service, as kube-proxy makes it
    iptables -t nat -A $chain -d 10.97.0.50 -p tcp --dport 5000 -j DNAT --to 10.96.0.9:5000
done
iptables -t nat -A POSTROUTING -s 10.96.0.0/16 ! -d 10.96.0.0/16 -j MASQUERADE
serve() { nsenter -t "$1" -n "$PYTHON" -c "$SERVER" "$2" "$3" & pids="$pids $!"; }
serve $pod 10.96.0.9 5000; serve $neighbour 192.0.2.2 8000; serve $$ 10.96.0.1 6443
# Open before the rules: everybody gets everywhere, so that it is they who keep anybody out.
ask() { if nsenter -t "$2" -n "$PYTHON" -c "$CLIENT" "$3" "$4"; then echo "$1 $5"; fi; }
iptables -P FORWARD ACCEPT; sleep 1
ask before $neighbour 10.96.0.9 5000 pod
iptables -P FORWARD DROP
"$PYTHON" -c "from ci.cluster.node import firewall as f; r = '10.96.0.0/16', '10.97.0.0/16'
print('added', f.admit('wharf-br0', *r), f.admit('wharf-br0', *r))"
iptables -P FORWARD ACCEPT  # what is kept out then is kept out by the rules, and not by the policy
ask neighbour $neighbour 10.96.0.9 5000 pod
ask neighbour $neighbour 10.97.0.50 5000 service
ask neighbour $neighbour 10.96.0.1 6443 api
iptables -P FORWARD DROP
ask machine $$ 10.96.0.9 5000 pod
ask machine $$ 10.97.0.50 5000 service
ask machine $$ 10.96.0.1 6443 api
ask pod $other 10.96.0.9 5000 pod
ask pod $other 10.96.0.1 6443 api
ask pod $other 192.0.2.2 8000 neighbour
"$PYTHON" -c "import json; from ci.cluster.node import firewall as f
f.clean({})
print('left', json.dumps([r for t in f.read('iptables').values() for r in t['rules'] if 'modelwharf' in r]))"
"""
SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    while True:
        server.accept()[0].close()
"""
CLIENT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
except OSError:
    sys.exit(1)
"""


def _possible() -> bool:
    if any(shutil.which(name) is None for name in ("unshare", "nsenter", "ip", "iptables")):
        return False
    probe = [*_UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /run && iptables --wait -t mangle -S"]
    return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.mark.skipif(not _possible(), reason="no network namespaces with iptables here")
def test_pods_reach_what_they_need_and_no_neighbour_reaches_them() -> None:
    done = subprocess.run(
        [*_UNSHARE, "sh", "-c", SCRIPT],
        cwd=ROOT,
        env={
            **{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
            **{"PYTHON": sys.executable, "SERVER": SERVER, "CLIENT": CLIENT},
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *seen, left = done.stdout.splitlines()
    assert seen == [
        *("before pod", "added True False"),
        *("machine pod", "machine service", "machine api"),
        *("pod pod", "pod api", "pod neighbour"),
    ]
    assert json.loads(left.removeprefix("left ")) == []
