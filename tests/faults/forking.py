"""Extractions in forked processes: what is slow to import is imported once. Started by ``test_killed_often.py``.

Reads one JSON object a line: where to write, and when to kill. Answers with one a line. Stays on one thread, so that
forking is safe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback

import torch

import featpipe.extraction._run  # noqa: F401 imported here, not in every child
from featpipe.extraction import Means, Order, extract
from featpipe.models import ModelRequest, load
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

OPERATIONS = ("mkdir", "open", "fsync", "rename", "link", "unlink", "listdir")


def announce(at, pipe):
    """Count what the store asks of the system; write to the pipe when it comes to a certain request."""
    count = [0]

    def counted(real):
        def call(*given, **options):
            count[0] += 1
            if count[0] == at:
                os.write(pipe, b"x")
            return real(*given, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return count


def child(asked, order, stimuli, pipe):
    """Extract, and say how many requests that took; the process ends here."""
    code = 1
    try:
        count = announce(asked.get("at"), pipe)
        some = stimuli.select(stimuli.ids[::3]) if asked.get("third") else stimuli
        means = Means(device="cpu", batch_size=8, shard_rows=8, workers=1, codec=asked["codec"])
        extract(order, some, FeatureCache(asked["cache"]), means=means)
        os.write(pipe, str(count[0]).encode())
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def outcome(asked, order, stimuli):
    """Fork an extraction, kill it if so asked, and tell how it ended."""
    read, write = os.pipe()
    began = time.perf_counter()
    if not (process := os.fork()):
        child(asked, order, stimuli, write)
    os.close(write)
    said = os.read(read, 64) if "at" in asked or "after" not in asked else b""
    if "after" in asked and (said == b"x" or "at" not in asked):
        time.sleep(asked["after"])
        os.kill(process, signal.SIGKILL)  # waited for below, so its number is still its own
    _, status = os.waitpid(process, 0)
    os.close(read)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.perf_counter() - began,
        "requests": int(said) if said.isdigit() else 0,
    }


def main(model, images):
    """Serve until the input ends."""
    torch.set_num_threads(1)
    order = Order(ModelRequest(model, trust=True), (LayerRequest("stem"), LayerRequest.parse("head:mean")))
    load(order.model)
    stimuli = StimulusSet.from_source(images)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(outcome(json.loads(line), order, stimuli)) + "\n")
        sys.stdout.flush()


main(*sys.argv[1:])
