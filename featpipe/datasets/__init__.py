"""Recordings to predict, whatever they were read from: a frozen `Dataset` of responses, or `RDMDataset` of RDMs."""

from __future__ import annotations

from featpipe.datasets._algonauts2023 import algonauts2023_vertices
from featpipe.datasets._dataset import Dataset
from featpipe.datasets._load import KINDS, is_data, load_dataset, load_stimuli, parse_data, subjects_of
from featpipe.datasets._rdm_dataset import RDMDataset
from featpipe.datasets._regions import REGIONS, default_masks, group_masks, region_order
from featpipe.datasets._responses import Responses, fingerprint
from featpipe.datasets._subjects import EVERYONE, pick_subjects
from featpipe.datasets._synthetic import colour_fields, make_synthetic_subject, simulate_responses

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
