"""Representational similarity analysis: RDMs, what compares them, and estimators that predict them."""

from __future__ import annotations

from featpipe.rsa._joining import concat, stack
from featpipe.rsa._rdms import RDMs, stimulus_sets

__all__ = ["RDMs", "concat", "stack", "stimulus_sets"]
