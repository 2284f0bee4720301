"""What every test can use."""

from __future__ import annotations

import os

# One thread a process: the tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
