"""Made-up inputs in the formats of real ones, and servers on loopback that slow down and break.

For tests of featpipe and of what is built on it. Names are imported on first use: the servers are processes
of their own and need none of the libraries that the inputs are made with.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "VERTICES": "featpipe.testing._datasets",
    "check_ids_estimator": "featpipe.testing._contract",
    "file_server": "featpipe.testing._file_server",
    "make_algonauts2019": "featpipe.testing._datasets",
    "make_algonauts2023": "featpipe.testing._datasets",
    "make_fsaverage": "featpipe.testing._datasets",
    "make_images": "featpipe.testing._datasets",
    "make_table_dataset": "featpipe.testing._datasets",
    "planted_rdm": "featpipe.testing._datasets",
    "proxy": "featpipe.testing._proxy",
    "s3_environment": "featpipe.testing._s3_server",
    "s3_server": "featpipe.testing._s3_server",
    "save_targets": "featpipe.testing._datasets",
}
__all__ = [
    "VERTICES",
    "check_ids_estimator",
    "file_server",
    "make_algonauts2019",
    "make_algonauts2023",
    "make_fsaverage",
    "make_images",
    "make_table_dataset",
    "planted_rdm",
    "proxy",
    "s3_environment",
    "s3_server",
    "save_targets",
]

if TYPE_CHECKING:
    from featpipe.testing._contract import check_ids_estimator
    from featpipe.testing._datasets import (
        VERTICES,
        make_algonauts2019,
        make_algonauts2023,
        make_fsaverage,
        make_images,
        make_table_dataset,
        planted_rdm,
        save_targets,
    )
    from featpipe.testing._file_server import file_server
    from featpipe.testing._proxy import proxy
    from featpipe.testing._s3_server import s3_environment, s3_server


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe.testing' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
