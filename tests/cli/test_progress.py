"""A bar for each stage, from when it begins; nothing where nobody looks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from featpipe.cli import _progress


@pytest.fixture
def terminal(monkeypatch):
    """A console that takes itself for a terminal, and what it draws."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(_progress, "ERR", console)
    return console


def test_a_stage_is_drawn_once_it_begins(terminal):
    with _progress.showing_stages() as stage:
        extract, folds = stage("extract"), stage("folds")
        for done in range(4):
            folds(done, 3)
    drawn = terminal.file.getvalue()
    assert "folds" in drawn
    assert "3/3" in drawn
    assert "extract" not in drawn
    extract(1, 2)  # after the end: no harm


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_drawn_where_nobody_looks(monkeypatch, quiet):
    console = Console(file=io.StringIO(), force_terminal=quiet)
    monkeypatch.setattr(_progress, "ERR", console)
    with _progress.showing_stages(quiet=quiet) as stage:
        stage("folds")(1, 3)
    assert not console.file.getvalue()
