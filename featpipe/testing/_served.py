"""A server in a process of its own, told what to do through its standard input.

Each command is a line of JSON, ``[name, {argument: value}]``, and each answer a line of JSON. When the
input ends the server does too, so none outlives whoever started it, however that ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"


class Served:
    """A running server; used in a ``with``.

    Parameters
    ----------
    module : str
        Run as ``python -m``; it calls `answer`.
    **options
        Given to it as JSON in its first argument.
    """

    def __init__(self, module: str, **options: Any) -> None:
        command = [sys.executable, "-m", module, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.port: int = self._next_line()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:40000``."""
        return f"http://{HOST}:{self.port}"

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and return its answer; it has taken effect by then."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        return self._next_line()

    def close(self) -> None:
        """Stop the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _next_line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The server {self._process.args!r} ended, see what it wrote above.")
        return json.loads(line)


def answer(port: int, commands: Mapping[str, Callable[..., Any]]) -> None:
    """Say which port is open and answer commands until the input ends; then end the process."""
    print(json.dumps(port), flush=True)  # noqa: T201 - this is how it talks to whoever started it
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(commands[name](**arguments)), flush=True)  # noqa: T201
    os._exit(0)  # without waiting for clients that keep a connection open
