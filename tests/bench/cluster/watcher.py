"""Runs in a pod: asks a model again and again and writes, with the time, each change of the version that answers.

    python3 -c SCRIPT URL        with the body of a request in the variable BODY

Every request has a connection of its own, so that each may reach another pod. Nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request

INTERVAL_S = 0.05


def main() -> None:
    body, last = os.environ["BODY"].encode(), ""
    while True:
        request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                version = str(json.load(answer)["version"])
        except (OSError, ValueError, KeyError) as error:
            version = f"{type(error).__name__}: {error}"
        if version != last:
            print(json.dumps({"at": time.time(), "version": version}), flush=True)
            last = version
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main()
