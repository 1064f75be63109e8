"""What was worked out about a file is remembered until the file changes, and never too early."""

from __future__ import annotations

import os
import sqlite3
import time

import pytest

from featpipe.remembered import file_digest, remembered, table_path


@pytest.fixture
def old_file(tmp_path):
    """A file that was last changed a minute ago, as far as its times can be set."""
    path = tmp_path / "file"
    path.write_text("content")
    return path


@pytest.fixture
def later(monkeypatch):
    """Let time pass without waiting."""
    now = time.time_ns
    monkeypatch.setattr("featpipe.remembered.time.time_ns", lambda: now() + 60 * 10**9)


def ask(path, answers, **options):
    return remembered("question", [path], lambda: answers.pop(0), **options)


def test_an_unchanged_file_is_asked_once(old_file, later):
    answers = ["first", "second"]
    assert [ask(old_file, answers), ask(old_file, answers)] == ["first", "first"]


@pytest.mark.parametrize("change", ["content", "replaced", "touched"])
def test_a_changed_file_is_asked_again(old_file, later, change):
    answers = ["first", "second"]
    ask(old_file, answers)
    if change == "content":
        old_file.write_text("other!!")
    elif change == "replaced":
        times = old_file.stat()
        old_file.with_name("new").write_text("content")
        os.replace(old_file.with_name("new"), old_file)
        os.utime(old_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        os.utime(old_file)
    assert ask(old_file, answers) == "second"


def test_a_file_that_changed_just_now_is_not_remembered(old_file):
    answers = ["first", "second"]
    assert [ask(old_file, answers), ask(old_file, answers)] == ["first", "second"]


def test_details_and_questions_are_told_apart(old_file, later):
    answers = ["first", "second"]
    assert ask(old_file, answers, details={"a": 1}) != ask(old_file, answers, details={"a": 2})


def test_rehash_asks_again_and_remembers_the_new_answer(old_file, later):
    answers = ["first", "second", "third"]
    ask(old_file, answers)
    assert ask(old_file, answers, rehash=True) == "second"
    assert ask(old_file, answers) == "second"


def test_a_table_that_cannot_be_written_only_costs_time(old_file, later):
    table_path().parent.parent.mkdir(parents=True, exist_ok=True)
    table_path().parent.write_text("in the way")
    answers = ["first", "second"]
    assert [ask(old_file, answers), ask(old_file, answers)] == ["first", "second"]


def test_links_are_known_by_what_they_lead_to(old_file, later, tmp_path):
    other = tmp_path / "other"
    other.write_text("another content")
    folder, file = tmp_path / "folder_link", tmp_path / "file_link"
    folder.symlink_to(old_file.parent)
    file.symlink_to(old_file)
    answers = ["first", "second"]
    around = folder / ".." / old_file.parent.name / old_file.name
    assert [ask(path, answers) for path in (old_file, folder / old_file.name, file, around)] == ["first"] * 4
    file.unlink()
    file.symlink_to(other)
    assert ask(file, answers) == "second"


def test_a_name_that_is_not_utf8_is_remembered(tmp_path, later):
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    file.write_text("content")
    answers = ["first", "second"]
    assert [ask(file, answers), ask(file, answers)] == ["first", "first"]


def test_file_digest(old_file):
    assert file_digest(old_file) == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


@pytest.mark.parametrize("step", ["_look_up", "executemany"])
def test_a_table_that_fails_later_only_costs_time(old_file, later, monkeypatch, step):
    def refuse(*_):
        raise sqlite3.OperationalError("database or disk is full")

    class Full(sqlite3.Connection):
        executemany = refuse

    if step == "_look_up":
        monkeypatch.setattr("featpipe.remembered._look_up", refuse)
    else:
        real = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *given, **how: real(*given, **how, factory=Full))
    assert ask(old_file, ["first"]) == "first"
    assert ask(old_file, ["second"]) == "second"


def test_a_file_from_the_future_is_not_remembered(old_file, later):
    """The clock went back after it was written: a change at the same time once more could not be seen."""
    ahead = time.time_ns() + 3600 * 10**9
    os.utime(old_file, ns=(ahead, ahead))
    answers = ["first", "second"]
    assert [ask(old_file, answers), ask(old_file, answers)] == ["first", "second"]


def test_a_clock_that_goes_back_forgets_nothing_that_is_right(old_file, later, monkeypatch):
    answers = ["first", "second", "third"]
    assert ask(old_file, answers) == "first"
    monkeypatch.setattr("featpipe.remembered.time.time_ns", lambda: 10**18)  # long before
    assert ask(old_file, answers) == "first"
    old_file.write_text("other")
    assert [ask(old_file, answers), ask(old_file, answers)] == ["second", "third"]
