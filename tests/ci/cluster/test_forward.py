"""The port-forward: what it leaves on disk. Whether it forwards is tested on a real cluster, in tests/cluster."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml

from ci.cluster import forward
from ci.cluster.access import Access
from ci.errors import Unavailable
from ci.workspace import Workspace

KEY = "the key of the administrator"


def test_no_key_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    path = tmp_path / "kubeconfig"
    user = {"client-key-data": base64.b64encode(KEY.encode()).decode()}
    path.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "here",
            }
        )
    )
    workspace = Workspace(tmp_path / "checkout")
    access = Access("kind", path, "here", "wharf.local", "127.0.0.1:5050", None)
    ours = workspace.state / "cluster" / "forward"

    def written() -> list[Path]:
        return [file for file in tmp_path.rglob("*") if file.is_file() and KEY in file.read_text()]

    wait_until = forward.processes.wait_until
    monkeypatch.setattr(forward.processes, "wait_until", lambda *_: wait_until(lambda: bool(written()), 10.0))
    try:
        with pytest.raises(Unavailable, match="the port-forward to mlflow does not work"):
            forward.start(workspace, access, "modelwharf", "mlflow", 5000, forward.processes.free_port())
        assert ours.stat().st_mode & 0o777 == 0o700
        assert {file.parent for file in written()} == {ours}
    finally:
        assert forward.stop(workspace)
    assert written() == []
    assert list(temporary.iterdir()) == []
