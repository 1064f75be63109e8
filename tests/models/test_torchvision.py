"""torchvision imports beside whatever torch is there, and featpipe itself imports neither."""

from __future__ import annotations

import subprocess
import sys


def python(code):
    """Run code in a new interpreter, where nothing is imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_zoos_import_after_it():
    run = python(
        "from featpipe.models._torchvision import import_torchvision; import_torchvision()\n"
        "import torchvision, timm, open_clip"
    )
    assert run.returncode == 0, run.stderr


def test_nothing_is_defined_where_the_own_operators_load():
    run = python(
        "import featpipe.models._torchvision as m; m._own_operators_load = lambda: True\n"
        "try: m.import_torchvision()\n"
        "except RuntimeError: pass\n"
        "assert not m._kept"
    )
    assert run.returncode == 0, run.stderr


def test_plain_values_need_no_torch():
    run = python(
        "import sys, featpipe.models as m; m.ModelRequest('timm:x'); m.ModelCard; m.match_layers; m.resolve\n"
        "assert not {'torch', 'timm', 'torchvision', 'open_clip'} & sys.modules.keys()"
    )
    assert run.returncode == 0, run.stderr


def test_without_the_extra_the_message_says_how_to_install_it():
    run = python(
        "import sys; sys.modules['torch'] = None\n"
        "from featpipe.models import ModelRequest, resolve\n"
        "resolve(ModelRequest('timm:resnet10t', 'random:0'))"
    )
    assert "MissingDependency: Running a network needs torch" in run.stderr
    assert "pip install 'featpipe[extract]'" in run.stderr
