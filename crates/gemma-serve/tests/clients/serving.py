"""Starts `gemma serve` for the scripts beside this file: a free port, a clean end, and its output when it fails."""

import os
import re
import signal
import subprocess
import sys
import threading


def program():
    """The program to test: the first argument, $GEMMA, or the release build."""
    here = os.path.dirname(os.path.abspath(__file__))
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(here, "../../../../target"))
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("GEMMA", os.path.join(target, "release/gemma"))
    if not os.path.exists(path):
        skip(f"there is no program {path}; build it with cargo build --release -p gemma-cli")
    return path


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(0)


class Server:
    """A running server; ends when the block ends, and its exit code must then be 0."""

    def __init__(self, *arguments, env=None):
        self.arguments = arguments
        self.env = env or {}

    def __enter__(self):
        command = [program(), "serve", "--port", "0", "--offline", *self.arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **self.env}
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}{self.process.stderr.read()}")
        self.url = found.group()
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        return self

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __exit__(self, kind, *_):
        code = self.process.poll()
        code = self.stop() if code is None else code
        if kind is None and code != 0:
            raise SystemExit(f"the server ended with {code}: {''.join(self.log[-20:])}")
