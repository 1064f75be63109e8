"""Representational similarity analysis: RDMs, what compares them, and estimators that predict them."""

from __future__ import annotations

from featpipe.rsa._challenge import (
    ChallengeRDMs,
    read_challenge_rdms,
    write_challenge_rdms,
    write_submission,
)
from featpipe.rsa._exchange import from_rsatoolbox, load_rdms, save_rdms, to_rsatoolbox
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
    "ChallengeRDMs",
    "ChannelStatistics",
    "RDMs",
    "channel_statistics",
    "concat",
    "from_rsatoolbox",
    "interval_of_rho",
    "load_rdms",
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
    "read_challenge_rdms",
    "save_rdms",
    "stack",
    "stimulus_sets",
    "to_rsatoolbox",
    "write_challenge_rdms",
    "write_submission",
]
