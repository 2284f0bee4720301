"""The `wharf` command: finds the module of a step, runs it, and is the one place that exits.

A step module offers `arguments(parser)` and `main(workspace, options) -> int`.
Only the module of the chosen step is imported: `wharf status` must not wait for scikit-learn.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence

from ci.console import paint, say
from ci.errors import Mistake, Unavailable, WharfError, did_you_mean
from ci.workspace import find

# command: (module, what `wharf --help` says), in the order of the loop
COMMANDS = {
    "up": ("ci.up", "start the local platform and carry the models through the loop"),
    "down": ("ci.down", "stop all that `up` started"),
    "new": ("ci.new", "make the directory of a new model"),
    "models": ("ci.models", "list the models, or those that a change touches"),
    "train": ("ci.train", "train a model and record the run in MLflow"),
    "gate": ("ci.gate", "check a run on held-out data and write the evidence"),
    "register": ("ci.registry", "make a gated run an exact version"),
    "build": ("ci.build", "build the bento of a version"),
    "promote": ("ci.promote", "release a version to an environment, as a commit"),
    "rollback": ("ci.rollback", "restore the previous release, as a commit"),
    "ship": ("ci.ship", "train, gate, register, build and promote to the first environment"),
    "render": ("ci.render", "write the manifests that follow from the releases"),
    "validate": ("ci.validate", "check the repository as the pull-request check does"),
    "batch": ("ci.batch", "predict for every row of a Parquet or CSV file"),
    "status": ("ci.status", "show what runs where: version, sync, health, address"),
    "monitor": ("ci.monitor", "compare live traffic with the training data"),
    "label": ("ci.label", "add the labels that came later to the prediction log"),
    "retrain": ("ci.retrain", "check the triggers, train on newer data, propose the challenger"),
    "lineage": ("ci.lineage", "follow a release back to its commit, data, run and evidence"),
    "history": ("ci.history", "show what ran when and who promoted it"),
    "logs": ("ci.logs", "show the log of a model's service"),
    "ui": ("ci.ui", "write the page with every model, its versions, drift and links"),
    "demo": ("ci.demo", "send shifted traffic and watch a challenger be proposed"),
}

# What the machine refuses, not a bug: the same command works once there is room or the permission.
_NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: wharf COMMAND [options]",
            "",
            *lines,
            "",
            "`wharf COMMAND --help` shows the options of one.",
            "Exit codes: 0 done, 1 crash, 2 mistake in the input, 3 a check said no, 4 something is unreachable.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `ci.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            code = _run(words)
        except SystemExit:  # argparse after `--help` or an unknown option
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where what it raises is caught, and not while Python ends
        return code
    except WharfError as error:
        for line in error.lines:
            say(f"{paint('ERROR', 'red', sys.stderr)}  {line}")
        if error.tip:
            say(f"{paint('TIP', 'yellow', sys.stderr)}    {error.tip}")
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except subprocess.TimeoutExpired as error:
        command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
        what = f"`{command}` did not end within {round(error.timeout, 1):g} seconds"
        say(f"{paint('ERROR', 'red', sys.stderr)}  {what}")
        return Unavailable.exit_code
    except BrokenPipeError:  # `wharf status | head`: the reader has seen enough
        _write_nowhere()
        return 0
    except OSError as error:
        if error.errno not in _NOT_OURS:
            return _crash(error)
        if error.filename is None:  # standard output itself: flushed again while Python ends
            _write_nowhere()
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        say(f"{paint('ERROR', 'red', sys.stderr)}  {what}")
        return Unavailable.exit_code
    except Exception as error:
        return _crash(error)


def _write_nowhere() -> None:
    """Point standard output to the null device, so that what is buffered fails nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # not a file, nothing to point elsewhere
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _crash(error: Exception) -> int:
    """Say that this is a bug and keep its traceback in a file, or show it where no file can be written."""
    say(f"{paint('CRASH', 'red', sys.stderr)}  {type(error).__name__}: {error}")
    try:
        with tempfile.NamedTemporaryFile("w", prefix="wharf-crash-", suffix=".txt", delete=False) as report:
            traceback.print_exception(error, file=report)
        where = f"the traceback is in {report.name}"
    except OSError as fault:
        traceback.print_exception(error)
        where = f"the traceback is above, no file could be written ({fault.strerror})"
    say(f"{paint('TIP', 'yellow', sys.stderr)}    this is a bug in Modelwharf; {where}")
    return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_usage())
        return 0
    command = words[0]
    if command not in COMMANDS:
        raise Mistake(f"no command '{command}'{did_you_mean(command, COMMANDS)}", tip="see `wharf --help`")
    module_name, summary = COMMANDS[command]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(prog=f"wharf {command}", description=f"{summary[0].upper()}{summary[1:]}.")
    module.arguments(parser)
    options = parser.parse_args(words[1:])
    return int(module.main(find(), options))


if __name__ == "__main__":
    sys.exit(main())
