"""Every error that featpipe raises on purpose.

::

    FeatpipeError
    ├── RequestError (ValueError)            the request is wrong; exit code 2
    │   ├── StimulusError                    images
    │   │   ├── EmptySource                  nothing to read
    │   │   ├── DuplicateIds                 two images, one id
    │   │   ├── BrokenImage                  cannot be decoded
    │   │   ├── ImageTooLarge                a decompression bomb
    │   │   └── UnsafePath                   leaves its archive or folder
    │   ├── SpecError                        a model, layer or reduction that cannot be parsed
    │   ├── ModelError                       networks
    │   │   ├── UnknownModel (LookupError)   no such name in the zoo
    │   │   ├── WeightsUnavailable           not at hand, and no network
    │   │   ├── WeightsMismatch              keys or shapes do not fit
    │   │   ├── LayerNotFound (LookupError)  no such layer
    │   │   └── UnsupportedOutput            a layer that cannot be stored as asked
    │   ├── NotCached (LookupError)          the cache lacks it
    │   │   ├── StimulusNotCached
    │   │   └── FeaturesNotCached
    │   ├── AmbiguousFeatures                several arrays match
    │   ├── DatasetError                     responses, targets, splits
    │   ├── RecipeError                      a recipe or a run folder
    │   └── MissingDependency (ImportError)  an extra is not installed
    └── WorkError (RuntimeError)             the work failed; exit code 1
        ├── CacheCorrupt                     bytes are not what was written
        ├── CacheReadError (OSError)         no permission, or the disk fails
        ├── CacheWriteError (OSError)        disk full, read-only, no permission
        ├── CacheUnreachable (OSError)       no network, no access, a server that fails
        ├── CacheBusy                        somebody else is at it
        ├── NonFiniteFeatures                NaN or overflow in a layer
        └── DeviceOutOfMemory                even at the smallest batch

A message says what is wrong, what came, what would be right, and what to do.
"""

from __future__ import annotations


class FeatpipeError(Exception):
    """Base of all errors that featpipe raises on purpose."""

    exit_code = 1


class RequestError(FeatpipeError, ValueError):
    """The request is wrong and would fail again."""

    exit_code = 2


class StimulusError(RequestError):
    """Images cannot be used as they are."""


class EmptySource(StimulusError):
    """A source holds no image."""


class DuplicateIds(StimulusError):
    """Two stimuli of one set have the same id."""


class BrokenImage(StimulusError):
    """An image cannot be decoded."""


class ImageTooLarge(StimulusError):
    """An image would decode to more pixels than is safe."""


class UnsafePath(StimulusError):
    """A path leaves the archive or folder that it belongs to."""


class SpecError(RequestError):
    """A model, layer, reduction or preprocessing cannot be parsed."""


class ModelError(RequestError):
    """A network cannot be used as asked."""


class UnknownModel(ModelError, LookupError):
    """A zoo has no model of that name."""


class WeightsUnavailable(ModelError):
    """Pretrained weights are neither on disk nor within reach."""


class WeightsMismatch(ModelError):
    """A weights file does not fit the architecture."""


class LayerNotFound(ModelError, LookupError):
    """No layer has that name."""


class UnsupportedOutput(ModelError):
    """The output of a layer cannot be stored as asked."""


class NotCached(RequestError, LookupError):
    """The cache lacks what was asked for."""


class StimulusNotCached(NotCached):
    """Stimuli have no row in the cache."""


class FeaturesNotCached(NotCached):
    """No array of the cache matches."""


class AmbiguousFeatures(RequestError):
    """Several arrays of the cache match, and the request does not say which."""


class DatasetError(RequestError):
    """Responses, targets, ids or splits do not fit together."""


class RecipeError(RequestError):
    """A recipe or a run folder cannot be used as asked."""


class MissingDependency(RequestError, ImportError):
    """An optional dependency is not installed."""


class WorkError(FeatpipeError, RuntimeError):
    """The request is right, but the work failed."""


class CacheCorrupt(WorkError):
    """Bytes in the cache are not those that were written."""


class CacheReadError(WorkError, OSError):
    """The cache cannot be read, though it may be sound."""


class CacheWriteError(WorkError, OSError):
    """The cache cannot be written."""


class CacheUnreachable(WorkError, OSError):
    """A remote cache does not answer, or not to us."""


class CacheBusy(WorkError):
    """Somebody else is at work where one alone may be."""


class NonFiniteFeatures(WorkError):
    """A layer gives NaN or infinity, or overflows the stored dtype."""


class DeviceOutOfMemory(WorkError):
    """The device has too little memory even for the smallest batch."""
