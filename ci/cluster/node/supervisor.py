"""The supervisor of the node: one process that starts the parts in order and starts again what ends.

    python -m ci.cluster.node.supervisor --parts FILE --state FOLDER --run FOLDER

SIGHUP: read the parts again, start what is new, end what is no longer wanted, start anew what changed. SIGTERM: end
the parts in reverse order, then itself; pods keep running. When it is killed, the parts keep running too, and the
next supervisor adopts them: a part is known by the file `run/parts/NAME.json`, or by its environment when even that
file is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ci.cluster.node import parts
from ci.cluster.node.parts import Part
from ci.files import sha256_file, write_atomic
from ci.local import processes
from ci.local.processes import Mark

TICK_S = 0.2
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 30.0  # a part that ran this long starts again without waiting
LOG_LIMIT = 20 * 1024 * 1024


@dataclass
class Running:
    """One part as the supervisor sees it."""

    part: Part
    mark: Mark | None = None
    digest: str = ""
    is_ready: bool = False
    begun: float = 0.0  # by the monotonic clock
    failures: int = 0  # in a row, each soon after its start
    due: float = 0.0
    restarts: int = 0
    asked: Future[bool] | None = field(default=None, repr=False)


class Supervisor:
    """Keeps the parts in `file` running."""

    def __init__(self, file: Path, state: Path, run: Path) -> None:
        self.file, self.state, self.run = file, state, run
        self.running: dict[str, Running] = {}
        self.generation = ""
        self.ending = False
        self.reading = True
        self.reported = ""
        self.probes = ThreadPoolExecutor(max_workers=4, thread_name_prefix="probe")

    # -- signals -------------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Let SIGTERM and SIGINT end it, and SIGHUP read the parts again."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "ending", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "reading", True))

    def loop(self) -> None:
        """Work until a signal ends it."""
        while not self.ending:
            try:
                self.work()
            except OSError as error:  # a full disk must not end what keeps everything else alive
                say(f"{error}")
                time.sleep(1.0)
            time.sleep(TICK_S)
        self.end_all()

    def work(self) -> None:
        """Do what is to be done now."""
        if self.reading:
            self.reading = False
            self.read()
        for one in self.running.values():
            self.tend(one)
        self.report()

    # -- what is wanted ------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take over the parts in the file: end those that are no longer in it or are no longer like that."""
        try:
            self.generation, found = parts.read(self.file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{self.file.name} cannot be read ({error}); the parts stay as they are")
            return
        wanted = {part.name: part for part in found}
        for name in [name for name in self.running if name not in wanted]:
            self.end(self.running.pop(name), "no longer wanted")
        for name, part in wanted.items():
            one = self.running.setdefault(name, Running(part))
            one.part = part
            if one.mark is None:
                self.adopt(one)
        # In the order of the file, which is the order of starting; the end comes in reverse.
        self.running = {name: self.running[name] for name in wanted}
        for one in reversed(self.running.values()):
            if one.mark and one.digest != one.part.digest():
                self.end(one, "its command or configuration changed")

    def adopt(self, one: Running) -> None:
        """Find the process that an earlier supervisor started for this part, and end any that is not its latest."""
        name = one.part.name
        try:
            raw = json.loads(self._record(name).read_text())
        except (OSError, ValueError):
            raw = {}
        mark = processes.mark_of(raw)
        if mark and processes.alive(mark):
            one.mark, one.digest, one.begun = mark, str(raw.get("digest", "")), time.monotonic()
            say(f"{name}: adopted process {mark.pid}")
        # Its children (the shims of containers, whatever a kubelet mounts with) have its environment too: they stay.
        strays = [p for p in processes.owned(self.state, name) if _leads(p) and (not mark or p.pid != mark.pid)]
        if strays:
            say(f"{name}: ending {len(strays)} processes of which nothing is known")
            processes.end(strays, one.part.grace_s)

    # -- one part ------------------------------------------------------------------------------------------------------

    def tend(self, one: Running) -> None:
        """Start the part when it is its turn, and notice when it became ready or ended."""
        if one.mark and not processes.alive(one.mark):
            self.note_end(one)
        if one.mark is None:
            if time.monotonic() >= one.due and all(self._is_ready(name) for name in one.part.after):
                self.start(one)
            return
        bound_log(self._log(one.part.name))
        if one.is_ready:
            return
        if one.asked is None:
            one.asked = self.probes.submit(parts.ready, one.part.probe)
        elif one.asked.done():
            one.is_ready, one.asked = one.asked.result(), None
            if one.is_ready:
                say(f"{one.part.name}: ready after {time.monotonic() - one.begun:.1f} s")

    def _is_ready(self, name: str) -> bool:
        other = self.running.get(name)
        return other is None or (other.mark is not None and other.is_ready)

    def start(self, one: Running) -> None:
        """Start the part's process."""
        name = one.part.name
        one.digest, one.begun, one.is_ready, one.asked = one.part.digest(), time.monotonic(), False, None
        try:
            one.mark, _ = processes.start(
                one.part.command,
                state=self.state,
                role=name,
                log=self._log(name),
                env=one.part.env,
                cwd=self.run,
            )
        except OSError as error:
            say(f"{name}: cannot be started: {error}")
            self._wait_longer(one)
            return
        record = {"pid": one.mark.pid, "created": one.mark.created, "digest": one.digest}
        write_atomic(self._record(name), json.dumps(record), durable=False)
        say(f"{name}: started as process {one.mark.pid}")

    def note_end(self, one: Running) -> None:
        """Write down that the part ended by itself, and when it is started again."""
        assert one.mark is not None
        code = processes.exit_code(one.mark)
        ran = time.monotonic() - one.begun
        one.mark, one.is_ready, one.asked = None, False, None
        one.restarts += 1
        if ran > STEADY_S:
            one.failures = 0
        self._wait_longer(one)
        how = "ended" if code is None else f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        wait = one.due - time.monotonic()
        say(f"{one.part.name}: {how} after {ran:.0f} s; again in {max(wait, 0):.1f} s")

    def _wait_longer(self, one: Running) -> None:
        one.due = time.monotonic() + BACKOFF_S[min(one.failures, len(BACKOFF_S) - 1)]
        one.failures += 1

    def end(self, one: Running, why: str) -> None:
        """End the part's own process, not what it started: containers outlive containerd and kubelet."""
        if one.mark and processes.alive(one.mark):
            say(f"{one.part.name}: ending process {one.mark.pid}: {why}")
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                processes.end([psutil.Process(one.mark.pid)], one.part.grace_s)
        one.mark, one.is_ready, one.asked, one.failures, one.due = None, False, None, 0, 0.0
        self._record(one.part.name).unlink(missing_ok=True)

    def end_all(self) -> None:
        """End all parts, the one started last first."""
        for one in reversed(self.running.values()):
            self.end(one, "the node goes down")
        self.probes.shutdown(wait=False, cancel_futures=True)
        (self.run / "supervisor-status.json").unlink(missing_ok=True)
        say("ended")

    # -- what others see -----------------------------------------------------------------------------------------------

    def report(self) -> None:
        """Write how the parts are, when that changed."""
        status = {
            name: {"pid": one.mark.pid if one.mark else None, "ready": one.is_ready, "restarts": one.restarts}
            for name, one in self.running.items()
        }
        text = json.dumps({"pid": os.getpid(), "generation": self.generation, "parts": status}, indent=1)
        if text != self.reported:
            write_atomic(self.run / "supervisor-status.json", text, durable=False)
            self.reported = text

    def _record(self, name: str) -> Path:
        return self.run / "parts" / f"{name}.json"

    def _log(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"


def _leads(process: psutil.Process) -> bool:
    """Tell whether a process was started by a supervisor: it then leads a session."""
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def bound_log(log: Path, limit: int = LOG_LIMIT) -> bool:
    """Keep a log that a process appends to below `limit` bytes: copy it aside and empty it, in place."""
    try:
        if log.stat().st_size <= limit:
            return False
        shutil.copyfile(log, log.with_suffix(".1.log"))
        os.truncate(log, 0)
    except FileNotFoundError:
        return False
    return True


def code() -> str:
    """Return what tells this supervisor from one of another checkout."""
    return "".join(sha256_file(Path(str(module.__file__))) for module in (sys.modules[__name__], parts, processes))


def say(text: str) -> None:
    """Write a line to the supervisor's own log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    for name in ("parts", "state", "run"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(argv)
    options.run.mkdir(parents=True, exist_ok=True)
    with processes.locked(options.run / "supervisor.lock", wait=False) as alone:
        if not alone:
            say("another supervisor works here")
            return 3
        supervisor = Supervisor(options.parts, options.state, options.run)
        supervisor.listen()
        record = {"pid": os.getpid(), "created": psutil.Process().create_time(), "code": code()}
        write_atomic(options.run / "supervisor.json", json.dumps(record))
        say(f"began as process {os.getpid()}")
        supervisor.loop()
        (options.run / "supervisor.json").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
