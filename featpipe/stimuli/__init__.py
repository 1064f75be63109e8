"""Stimuli: which images there are, what identifies them, and how their bytes become RGB pixels.

A set is made from a folder, archive, CSV or array by `StimulusSet.from_source`. Its `StimulusManifest`, ids
and SHA-256 of each image in order, is all that a cache keeps of it. The policy that turns bytes into pixels
(rotation, alpha, depth, colour) is documented in ``featpipe.stimuli._decode`` and named by `DECODER`, which
is part of every cache key through ``Preprocessing.decoder``.
"""

from __future__ import annotations

from featpipe.stimuli._decode import DECODER, MAX_PIXELS
from featpipe.stimuli._join import join_stimuli
from featpipe.stimuli._manifest import StimulusManifest
from featpipe.stimuli._set import StimulusSet

__all__ = ["DECODER", "MAX_PIXELS", "StimulusManifest", "StimulusSet", "join_stimuli"]
