"""Where the node keeps its state, and the names and ports that its parts agree on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NODE = "wharf"  # the name of the Node object: a machine's own host name need not be a valid one
BRIDGE = "wharf-br0"
REGISTRY_NAME = "wharf.local"
DOMAIN = "cluster.local"

# Not the usual ports, so that an etcd, containerd or registry of the machine's own is never in the way.
ETCD_PORT, ETCD_PEER_PORT = 12379, 12380
API_PORT = 6443
KUBELET_PORT = 10250


@dataclass(frozen=True)
class Layout:
    """The folders of the node: `state` outlives a restart of the machine, `run` does not."""

    state: Path = Path("/var/lib/modelwharf")
    run: Path = Path("/run/modelwharf")

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"

    @property
    def configuration(self) -> Path:
        return self.state / "configuration"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pod_logs(self) -> Path:
        return self.state / "pod-logs"

    @property
    def kubelet(self) -> Path:
        return self.state / "kubelet"

    @property
    def containerd(self) -> Path:
        return self.state / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd" / "containerd.sock"

    @property
    def containerd_tasks(self) -> Path:
        """Where containerd has a folder for each container that runs."""
        return self.run / "containerd" / "io.containerd.runtime.v2.task" / "k8s.io"

    @property
    def parts(self) -> Path:
        """The file that tells the supervisor what to run."""
        return self.configuration / "parts.json"

    @property
    def before(self) -> Path:
        """What the machine looked like before the node was there, to be restored by `down`."""
        return self.state / "before.json"

    @property
    def owner(self) -> Path:
        """The file that names the checkout which the node belongs to."""
        return self.state / "owner.json"

    @property
    def admin(self) -> Path:
        """The administrator's kubeconfig; a checkout gets a copy."""
        return self.configuration / "admin.kubeconfig"


HERE = Layout()
