"""Recordings to predict, whatever they were read from: a frozen `Dataset` of responses, or `RDMDataset` of RDMs.

Names are imported on first use: whoever extracts from a folder of images needs no scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featpipe.datasets._kinds import EVERYONE, KINDS, is_data

__all__ = [
    "EVERYONE",
    "KINDS",
    "REGIONS",
    "Dataset",
    "RDMDataset",
    "Responses",
    "algonauts2023_vertices",
    "colour_fields",
    "default_masks",
    "fingerprint",
    "group_masks",
    "is_data",
    "load_dataset",
    "load_stimuli",
    "make_synthetic_subject",
    "parse_data",
    "pick_subjects",
    "region_order",
    "simulate_responses",
    "subjects_of",
]

if TYPE_CHECKING:
    from featpipe.datasets._algonauts2023 import algonauts2023_vertices
    from featpipe.datasets._dataset import Dataset
    from featpipe.datasets._load import load_dataset, load_stimuli, parse_data, subjects_of
    from featpipe.datasets._rdm_dataset import RDMDataset
    from featpipe.datasets._regions import REGIONS, default_masks, group_masks, region_order
    from featpipe.datasets._responses import Responses, fingerprint
    from featpipe.datasets._subjects import pick_subjects
    from featpipe.datasets._synthetic import colour_fields, make_synthetic_subject, simulate_responses

_HOMES = {
    "Dataset": "featpipe.datasets._dataset",
    "RDMDataset": "featpipe.datasets._rdm_dataset",
    "REGIONS": "featpipe.datasets._regions",
    "Responses": "featpipe.datasets._responses",
    "algonauts2023_vertices": "featpipe.datasets._algonauts2023",
    "colour_fields": "featpipe.datasets._synthetic",
    "default_masks": "featpipe.datasets._regions",
    "fingerprint": "featpipe.datasets._responses",
    "group_masks": "featpipe.datasets._regions",
    "load_dataset": "featpipe.datasets._load",
    "load_stimuli": "featpipe.datasets._load",
    "make_synthetic_subject": "featpipe.datasets._synthetic",
    "parse_data": "featpipe.datasets._load",
    "pick_subjects": "featpipe.datasets._subjects",
    "region_order": "featpipe.datasets._regions",
    "simulate_responses": "featpipe.datasets._synthetic",
    "subjects_of": "featpipe.datasets._load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe.datasets' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
