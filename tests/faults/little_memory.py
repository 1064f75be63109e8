"""Extractions in forked processes with little memory. Started by ``test_system_faults.py``.

Arguments: how many MiB of address space each process may add, with commas between; then the command's.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

from featpipe.cli import main


def run(words, limit=None):
    """Run a command in this process: exit code."""
    try:
        if limit is not None:
            there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (there + limit * 2**20,) * 2)
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


def forked(words, limit):
    """Run a command in a process of its own: exit code and what it said."""
    read, write = os.pipe()
    if not (process := os.fork()):
        code = 99
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            code = run(words, limit)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    return {"code": os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), "said": said}


limits, warm, cache, *words = sys.argv[1:]
torch.set_num_threads(1)
assert run([*words, "--cache", warm, "--json"]) == 0  # all is imported, and no thread is left
for limit in map(int, limits.split(",")):
    result = {"limit": limit, **forked([*words, "--cache", f"{cache}-{limit}"], limit)}
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
