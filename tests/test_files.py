"""A folder is written by one process at a time, and is as it was where nothing was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from featpipe.errors import RecipeError
from featpipe.files import claimed

HOLD = """
import pathlib, sys, time
from featpipe.files import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_of_the_first(tmp_path):
    with (
        claimed(tmp_path / "run"),
        pytest.raises(RecipeError, match=f"process {os.getpid()} on .* is writing"),
        claimed(tmp_path / "run"),
    ):
        pass
    with claimed(tmp_path / "run"):
        (tmp_path / "run" / "summary.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["summary.json"]


@pytest.mark.parametrize("there", [True, False])
def test_what_writes_nothing_leaves_nothing(tmp_path, there):
    if there:
        (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "run"):
        raise KeyboardInterrupt
    assert (tmp_path / "run").exists() == there


def test_a_writer_that_was_killed_stands_in_nobodys_way(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(RecipeError, match=f"process {other.pid} on"), claimed(tmp_path / "run"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with claimed(tmp_path / "run"):
        assert (tmp_path / "run" / ".writing").exists()
