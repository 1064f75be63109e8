"""Representational similarity analysis: RDMs, what compares them, and estimators that predict them."""

from __future__ import annotations

from featpipe.rsa._joining import concat, stack
from featpipe.rsa._nulls import interval_of_rho, main_effect_null, permutation_null, rdm_nulls_summary
from featpipe.rsa._rdms import RDMs, stimulus_sets
from featpipe.rsa._scores import (
    RDM_METRICS,
    measured_labels,
    rdm_ceiling,
    rdm_ceiling_lower,
    rdm_percent,
    rdm_r2,
    rdm_r2_centred,
    rdm_rho,
    rdm_rho_centred,
)
from featpipe.rsa._statistics import ChannelStatistics, channel_statistics

__all__ = [
    "RDM_METRICS",
    "ChannelStatistics",
    "RDMs",
    "channel_statistics",
    "concat",
    "interval_of_rho",
    "main_effect_null",
    "measured_labels",
    "permutation_null",
    "rdm_ceiling",
    "rdm_ceiling_lower",
    "rdm_nulls_summary",
    "rdm_percent",
    "rdm_r2",
    "rdm_r2_centred",
    "rdm_rho",
    "rdm_rho_centred",
    "stack",
    "stimulus_sets",
]
