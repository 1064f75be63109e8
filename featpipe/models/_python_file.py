"""Networks from a user's own Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from featpipe.errors import ModelError, RequestError, SpecError
from featpipe.models._architecture import Architecture
from featpipe.models._card import ModelRequest
from featpipe.remembered import file_digest
from featpipe.spec import Preprocessing

_IMAGENET = Preprocessing(256, (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(request: ModelRequest, name: str) -> Architecture:
    """Call ``FILE.py:FUNCTION``, which returns a module, or a module and its preprocessing.

    The preprocessing is a `Preprocessing` or a dictionary of its fields; without one it is ImageNet's usual
    (256, centre 224). Model arguments are the function's keyword arguments. The file's SHA-256 enters the
    key; files that it imports or reads do not, but the weights do.

    Raises
    ------
    RequestError
        Without `ModelRequest.trust`.
    ModelError
        When the file has no such function, or it returns something else.
    """
    text, _, function = name.rpartition(":")
    path = Path(text)
    if not request.trust:
        raise RequestError(
            f"{request.model} would execute {path.name or name}. Read that file first, then say so with "
            "--trust: it runs with all your rights."
        )
    if not path.is_file() or not function:
        raise ModelError(f"There is no file {text or name!r}. Write python:FILE.py:FUNCTION.")
    returned = _function(path, function)(**dict(request.model_args))
    module, preprocessing = returned if isinstance(returned, tuple) else (returned, _IMAGENET)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{function} of {path} returned a {type(module).__name__}. It must return a torch.nn.Module, "
            "or a pair of module and preprocessing."
        )
    return Architecture(
        module=module,
        preprocessing=_preprocessing(preprocessing, path),
        args=dict(request.model_args),
        label="default",
        prefix_tokens=getattr(module, "num_prefix_tokens", 0),
        class_token=getattr(module, "cls_token", None) is not None,
        name=f"python:{path.name}:{function}",
        code=file_digest(path),
    )


def _function(path: Path, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"featpipe_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{path} has no function {name!r}. Write python:FILE.py:FUNCTION.")
    return function


def _preprocessing(value: Any, path: Path) -> Preprocessing:
    if isinstance(value, Preprocessing):
        return value
    if not isinstance(value, Mapping):
        raise SpecError(
            f"{path} returned a {type(value).__name__} as preprocessing; see featpipe.spec.Preprocessing."
        )
    return Preprocessing.from_json(value)
