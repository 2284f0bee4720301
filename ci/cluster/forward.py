"""A port-forward that outlives the command which started it: how this machine reaches a Service of the cluster.

Run as `python -m ci.cluster.forward KUBECONFIG CONTEXT NAMESPACE SERVICE PORT LOCAL_PORT`; it goes on until it is
ended, and connects again when the pod or the API server went away.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

from ci.cluster.access import Access
from ci.errors import Unavailable
from ci.local import processes
from ci.workspace import Workspace

ROLE = "forward"
_AGAIN_S = 1.0
_START_S = 30.0


def start(workspace: Workspace, access: Access, namespace: str, service: str, port: int, local_port: int) -> None:
    """Start the port-forward unless it answers already; returns when `127.0.0.1:local_port` accepts.

    Raises Unavailable when it does not within half a minute.
    """
    if processes.owned(workspace.state, ROLE) and not processes.port_is_free(local_port):
        return
    stop(workspace)
    log = workspace.logs / "forward.log"
    # kr8s writes the client's key to a temporary file and leaves it there: to one that `stop` removes.
    secrets = _secrets(workspace)
    secrets.mkdir(parents=True, mode=0o700)
    command = [sys.executable, "-m", "ci.cluster.forward", str(access.kubeconfig), access.context]
    command += [namespace, service, str(port), str(local_port)]
    env = {**os.environ, "TMPDIR": str(secrets)}
    mark, begins = processes.start(
        command, state=workspace.state, role=ROLE, log=log, env=env, cwd=Path(__file__).parents[2]
    )
    processes.wait_until(lambda: not processes.port_is_free(local_port) or not processes.alive(mark), _START_S)
    if processes.port_is_free(local_port):
        raise Unavailable(
            f"the port-forward to {service} does not work: {processes.last_line(log, begins) or 'it said nothing'}",
            tip="run the command again; `.wharf/logs/forward.log` has the rest",
        )


def stop(workspace: Workspace) -> bool:
    """End the port-forward of this workspace; tells whether there was one."""
    ended = processes.end(processes.owned(workspace.state, ROLE))
    if _secrets(workspace).exists():
        shutil.rmtree(_secrets(workspace))
    return ended


def _secrets(workspace: Workspace) -> Path:
    return workspace.state / "cluster" / "forward"


async def _forward(kubeconfig: str, context: str, namespace: str, service: str, port: int, local_port: int) -> None:
    import kr8s.asyncio
    from kr8s.asyncio.objects import Service

    while True:
        try:
            api = await kr8s.asyncio.api(kubeconfig=kubeconfig, context=context)
            found = await Service.get(service, namespace=namespace, api=api)
            forward = found.portforward(remote_port=port, local_port=local_port)
            await forward.run_forever()
        except Exception as error:
            # Whatever it was (a pod that is replaced, an API server that restarts), the next try may do better.
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        await asyncio.sleep(_AGAIN_S)


if __name__ == "__main__":
    *_names, _port, _local = sys.argv[1:]
    asyncio.run(_forward(*_names, port=int(_port), local_port=int(_local)))
