"""What ``--weights`` asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from featpipe.errors import SpecError
from featpipe.spec import ModelRef

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class WeightsRequest:
    """``default``, a tag, ``random:SEED`` or a file, told apart without looking into a zoo."""

    tag: str | None = None
    file: Path | None = None
    random: bool = False
    seed: int = 0

    @property
    def pretrained(self) -> bool:
        """Whether the zoo's own weights are asked for."""
        return self.file is None and not self.random

    @classmethod
    def parse(cls, text: str, ref: ModelRef) -> Self:
        """Parse ``--weights`` beside a model's name, which may have a tag already; raises `SpecError`."""
        if text.startswith("random"):
            seed = re.fullmatch(r"random:([0-9]{1,18})", text)
            if not seed:
                raise SpecError(
                    f"Random weights need a seed, got {text!r}. Write random:SEED, such as random:0."
                )
            return cls(ref.tag, random=True, seed=int(seed[1]))
        if text == "default":
            return cls(ref.tag)
        if text.endswith(_SUFFIXES) or (Path(text).is_file() and Path(text).name != text):
            return cls(ref.tag, file=Path(text))
        if "/" in text or "\\" in text:
            raise SpecError(
                f"There is no weights file {text}. Write default, a TAG of the zoo, random:SEED, or a file "
                f"({', '.join(_SUFFIXES)})."
            )
        if ref.tag not in (None, text):
            raise SpecError(
                f"{ref} names weights {ref.tag!r}, and --weights names {text!r}. Give one of them."
            )
        return cls(text)
