"""Where a cache lies: a folder, an object store, or a web server that is read only. One interface for all."""

from featpipe.store.location._folder import Folder
from featpipe.store.location._hashed import Hashed
from featpipe.store.location._locate import (
    LOCAL,
    MIRROR_SIZE,
    MirroredURL,
    Root,
    absolute,
    is_url,
    locate,
    mirrored,
    require_shared,
    shown_url,
)
from featpipe.store.location._location import Buffers, Location, StoredFile

__all__ = [
    "LOCAL",
    "MIRROR_SIZE",
    "Buffers",
    "Folder",
    "Hashed",
    "Location",
    "MirroredURL",
    "Root",
    "StoredFile",
    "absolute",
    "is_url",
    "locate",
    "mirrored",
    "require_shared",
    "shown_url",
]
