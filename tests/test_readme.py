"""What the README shows works: its commands and its Python are run, and its command reference is current.

``python tests/test_readme.py`` writes the reference anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from featpipe.cli import app

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
BEGIN, END = re.compile(r"<!-- commands: [^\n]*-->\n"), "<!-- /commands -->"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S)


def reference() -> str:
    """One row a command: its arguments, what it does, its options."""
    rows = ["| command | what it does | options |", "|---|---|---|"]
    for name, command in _commands(typer.main.get_command(app), "featpipe"):
        options = [max(p.opts, key=len) for p in _of(command, "option") if "--help" not in p.opts]
        words = " ".join([name, *(p.name.upper() for p in _of(command, "argument"))])
        says = (command.help or "").split("\n")[0]
        rows.append(f"| `{words}` | {says} | {' '.join(f'`{option}`' for option in options)} |")
    return "\n".join(rows) + "\n"


def _of(command, kind: str):
    return [p for p in command.params if p.param_type_name == kind]


def _commands(group, name: str):
    for part, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


def with_reference(text: str) -> str:
    begin = BEGIN.search(text)
    return text[: begin.end()] + reference() + text[text.index(END) :]


def test_the_command_reference_is_current():
    text = README.read_text(encoding="utf-8")
    assert text == with_reference(text), "run `python tests/test_readme.py`"


@pytest.mark.slow
def test_commands_and_python_run(tmp_path):
    bin_folder = Path(sys.executable).parent
    script = "set -euo pipefail\n" + f'export PATH="{bin_folder}:$PATH"\n' + "".join(blocks("bash"))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 problems" in done.stdout
    code = "".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(done.stdout.split()[0]) < 1


def test_every_file_that_the_readme_names_is_there():
    named = re.findall(r"`((?:featpipe|pipelines|cache|tests)/[\w./]*)`", README.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (PROJECT / name).exists()] == []


if __name__ == "__main__":
    README.write_text(with_reference(README.read_text(encoding="utf-8")), encoding="utf-8")
