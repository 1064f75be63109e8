"""Made-up inputs in the formats of real ones, for tests of featpipe and of what is built on it."""

from __future__ import annotations

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

__all__ = [
    "VERTICES",
    "check_ids_estimator",
    "make_algonauts2019",
    "make_algonauts2023",
    "make_fsaverage",
    "make_images",
    "make_table_dataset",
    "planted_rdm",
    "save_targets",
]
