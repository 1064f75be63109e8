"""A network as a zoo builds it, before weights from elsewhere are loaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featpipe.errors import ModelError, UnknownModel, WeightsUnavailable
from featpipe.spec import Preprocessing, Scalar

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Wanted:
    """What a zoo is asked to build.

    Parameters
    ----------
    name : str
        Without zoo and tag.
    tag : str or None
        Which pretrained weights; None is the zoo's default.
    args : dict
        For the constructor.
    input_size : (height, width) or None
        Where it differs from the network's own.
    pretrained : bool
        Load the zoo's weights.
    whole : bool
        The whole image is wanted, so the network's own crop does not matter.
    """

    name: str
    tag: str | None
    args: dict[str, Scalar]
    input_size: tuple[int, int] | None
    pretrained: bool
    whole: bool = False


@dataclass(frozen=True)
class Architecture:
    """What a zoo built.

    ``preprocessing`` is the network's own; ``args`` holds the constructor's arguments that enter the key,
    ``label`` is the tag, ``missing`` the parameters that pretrained weights lack, ``files`` what was read,
    ``adapt`` turns the names of a foreign checkpoint into the module's, and ``name`` replaces ``ZOO:NAME``
    in the key where it is not what the user wrote.
    """

    module: nn.Module
    preprocessing: Preprocessing
    args: Mapping[str, Scalar]
    label: str = ""
    prefix_tokens: int = 0
    class_token: bool = False
    missing: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    adapt: Callable[[State], State] = field(default=lambda state: state)
    name: str = ""
    code: str = ""


def construct(zoo: str, name: str, build: Callable[..., Any], **args: Any) -> Any:
    """Call a zoo's constructor; raises `ModelError` when it refuses the arguments."""
    try:
        return build(**args)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise ModelError(
            f"{zoo}:{name} cannot be built with {shown or 'its defaults'}: {type(error).__name__}: {error}. "
            "Check the model arguments."
        ) from error


def unknown_model(zoo: str, name: str, known: Sequence[str]) -> UnknownModel:
    """Return the error for a name that a zoo does not have, with the names that it may have meant."""
    lower = {other.lower(): other for other in known}
    spelt = [lower[other] for other in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.75)]
    longer = [other for key, other in lower.items() if name.lower() in key or key in name.lower()]
    close = list(dict.fromkeys([*spelt, *longer]))[:5]
    return UnknownModel(
        f"{zoo} has no model {name!r}."
        + (f" Similar: {', '.join(close)}." if close else "")
        + f" `featpipe models PATTERN --zoo {zoo}` lists them."
    )


def no_pretrained(model: str, tag: str | None, known: Iterable[str]) -> WeightsUnavailable:
    """Return the error for weights that the zoo does not have."""
    tags = ", ".join(known)
    what = f"no set of weights {tag!r}" if tag else "no single default set of weights"
    return WeightsUnavailable(
        f"There is {what} for {model}. "
        + (f"The zoo has: {tags}. Name one of them with --weights TAG. " if tags else "The zoo has none. ")
        + "Or pass --weights FILE, or --weights random:SEED."
    )
