"""Representational similarity analysis: RDMs, what compares them, and estimators that predict them."""

from __future__ import annotations

from featpipe.rsa._algonauts2019 import algonauts2019_scores, official_ceiling
from featpipe.rsa._challenge import (
    ChallengeRDMs,
    challenge_variable,
    read_challenge_rdms,
    write_challenge_rdms,
    write_submission,
)
from featpipe.rsa._compare import compare, second_order
from featpipe.rsa._crossnobis import crossnobis
from featpipe.rsa._distances import METRICS, rdm
from featpipe.rsa._exchange import from_rsatoolbox, load_rdms, save_rdms, to_rsatoolbox
from featpipe.rsa._feature_rdm import FeatureRDM
from featpipe.rsa._inference import CORRECTIONS, correct_p, noise_ceilings, official_noise_ceilings
from featpipe.rsa._joining import concat, stack
from featpipe.rsa._main_effects import main_effects, remove_main_effects, without_main_effects
from featpipe.rsa._model_comparison import OVER, ModelComparison, compare_models
from featpipe.rsa._noise import noise_precision
from featpipe.rsa._nulls import interval_of_rho, main_effect_null, permutation_null, rdm_nulls_summary
from featpipe.rsa._permuted_models import permuted_p
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
from featpipe.rsa._similarity import METHODS
from featpipe.rsa._streamed import feature_rdms
from featpipe.rsa.mask._channel_mask import ChannelMask
from featpipe.rsa.mask._stage_tuning import plot_stage_tuning
from featpipe.rsa.reweighted._feature_reweighted import FeatureReweightedRSA
from featpipe.rsa.reweighted._layer_weighted import LayerWeightedRSA
from featpipe.rsa.statistics._statistics import ChannelStatistics, channel_statistics

__all__ = [
    "CORRECTIONS",
    "METHODS",
    "METRICS",
    "OVER",
    "RDM_METRICS",
    "ChallengeRDMs",
    "ChannelMask",
    "ChannelStatistics",
    "FeatureRDM",
    "FeatureReweightedRSA",
    "LayerWeightedRSA",
    "ModelComparison",
    "RDMs",
    "algonauts2019_scores",
    "challenge_variable",
    "channel_statistics",
    "compare",
    "compare_models",
    "concat",
    "correct_p",
    "crossnobis",
    "feature_rdms",
    "from_rsatoolbox",
    "interval_of_rho",
    "load_rdms",
    "main_effect_null",
    "main_effects",
    "measured_labels",
    "noise_ceilings",
    "noise_precision",
    "official_ceiling",
    "official_noise_ceilings",
    "permutation_null",
    "permuted_p",
    "plot_stage_tuning",
    "rdm",
    "rdm_ceiling",
    "rdm_ceiling_lower",
    "rdm_nulls_summary",
    "rdm_percent",
    "rdm_r2",
    "rdm_r2_centred",
    "rdm_rho",
    "rdm_rho_centred",
    "read_challenge_rdms",
    "remove_main_effects",
    "save_rdms",
    "second_order",
    "stack",
    "stimulus_sets",
    "to_rsatoolbox",
    "without_main_effects",
    "write_challenge_rdms",
    "write_submission",
]
