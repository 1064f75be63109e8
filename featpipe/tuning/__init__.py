"""Training in torch behind scikit-learn estimators: one loop, and modules and losses that differ."""

from __future__ import annotations
