"""Several stimulus sets as one, under ids that say which set an image is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from featpipe.stimuli._images import Images, Part
from featpipe.stimuli._manifest import StimulusManifest
from featpipe.stimuli._set import StimulusSet


@dataclass(frozen=True)
class JoinedImages:
    """The images of several sources, one source after the other."""

    ids: tuple[str, ...]
    sources: tuple[Images, ...]

    @property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(source.ids) for source in self.sources)]

    def _place(self, position: int) -> tuple[Images, int]:
        starts = self._starts
        number = max(n for n in range(len(self.sources)) if starts[n] <= position)
        return self.sources[number], position - starts[number]

    def file(self, position: int) -> str:
        source, row = self._place(position)
        return source.file(row)

    @property
    def parts(self) -> Sequence[Part]:
        return [
            Part(part.files, range(start + part.positions.start, start + part.positions.stop), part.within)
            for start, source in zip(self._starts, self.sources, strict=False)
            for part in source.parts
        ]

    def read(self, position: int) -> bytes | np.ndarray:
        source, row = self._place(position)
        return source.read(row)


def join_stimuli(sets: Mapping[str, StimulusSet], *, name: str) -> StimulusSet:
    """Put stimulus sets side by side, with ids ``SET/NAME``.

    Parameters
    ----------
    sets : mapping of str to StimulusSet
        By the name that goes before the ids; at least one.
    name : str
        What the whole is called.

    Raises
    ------
    DuplicateIds
        If two images would have one id.
    """
    ids = tuple(f"{label}/{i}" for label, part in sets.items() for i in part.ids)
    sha256 = tuple(digest for part in sets.values() for digest in part.sha256)
    manifest = StimulusManifest(ids, sha256, name=name, source=name)
    sources = tuple(part._images for part in sets.values())
    images = JoinedImages(
        tuple(f"{label}/{i}" for label, s in zip(sets, sources, strict=True) for i in s.ids), sources
    )
    starts = [0, *accumulate(len(source.ids) for source in sources)]
    positions = [
        start + p for start, part in zip(starts, sets.values(), strict=False) for p in part._positions
    ]
    return StimulusSet(
        manifest,
        images,
        positions,
        max_pixels=max(part._max_pixels for part in sets.values()),
        skipped=tuple(entry for part in sets.values() for entry in part.skipped),
    )
