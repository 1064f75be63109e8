"""Where a cache lies: a folder, an object store, or a web server that is read only. One interface for all."""

from featpipe.store.location._folder import Folder
from featpipe.store.location._locate import LOCAL, is_url, locate, shown_url
from featpipe.store.location._location import Buffers, Location, StoredFile

__all__ = ["LOCAL", "Buffers", "Folder", "Location", "StoredFile", "is_url", "locate", "shown_url"]
