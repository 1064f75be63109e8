"""Learning rates of the report, as keyword arguments of the heads: ``LinearHead("all", **LINEAR_ALL_ROIS)``.

Chimisso et al. (2023), table of section 4: the rate, and what it is multiplied by every so many epochs.
"""

from __future__ import annotations

LINEAR_ALL_ROIS = {"learning_rate": 1e-3, "decay": 0.5, "decay_every": 10}
LINEAR_PER_ROI = {"learning_rate": 1e-4, "decay": 0.75, "decay_every": 10}
DEEP = {"learning_rate": 5e-6, "decay": 0.75, "decay_every": 10}
VERTEX_POSITION = {"learning_rate": 7.5e-6, "decay": 0.75, "decay_every": 5, "residual": False}
VERTEX_POSITION_RESIDUAL = {"learning_rate": 1.5e-5, "decay": 0.75, "decay_every": 5, "residual": True}
