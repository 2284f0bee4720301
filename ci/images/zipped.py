"""gzip on all cores, with the same bytes on any number of them.

The stream is cut into pieces of a fixed length, each a gzip member of its own; members one after the other are one gzip
file (RFC 1952, 2.2).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

# A third of the time of level 6 for a tenth more bytes; most images go to a registry on the same machine.
_LEVEL = 3
_PIECE = 4 << 20
_GZIP = 16 + zlib.MAX_WBITS  # a header without a name and a time


class Zipped:
    """A stream that is compressed into `target`; `plain` and `packed` digest what goes in and what comes out."""

    def __init__(self, target: IO[bytes]) -> None:
        self.plain, self.packed, self.size = hashlib.sha256(), hashlib.sha256(), 0
        self._target, self._rest, self._cores = target, bytearray(), os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._cores)
        self._waiting: deque[Future[bytes]] = deque()

    def write(self, data: bytes) -> int:
        self.plain.update(data)
        self._rest += data
        while len(self._rest) >= _PIECE:
            self._add(bytes(self._rest[:_PIECE]))
            del self._rest[:_PIECE]
        return len(data)

    def close(self) -> None:
        """Write what is left."""
        if self._rest or (not self.size and not self._waiting):
            self._add(bytes(self._rest))
        self._drain(0)
        self._pool.shutdown()

    def abandon(self) -> None:
        """Stop without writing what is left."""
        self._pool.shutdown(cancel_futures=True)

    def _add(self, piece: bytes) -> None:
        self._waiting.append(self._pool.submit(_member, piece))
        self._drain(2 * self._cores)

    def _drain(self, most: int) -> None:
        """Write finished pieces until at most `most` are waiting, so that memory does not grow with the layer."""
        while len(self._waiting) > most:
            packed = self._waiting.popleft().result()
            self.packed.update(packed)
            self.size += self._target.write(packed)


def _member(piece: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(piece) + packer.flush()
