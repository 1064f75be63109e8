"""The contrastive losses of responses and images: the report's equation 1, and its better known relatives."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from featpipe.errors import RequestError


def contrastive_loss(
    z_responses: torch.Tensor,
    z_images: torch.Tensor,
    *,
    temperature: float,
    include_positive: bool = False,
    symmetric: bool = False,
) -> torch.Tensor:
    """Return the contrastive loss of every stimulus of a batch.

    ``l_i = -log( exp(sim(y_i, x_i) / τ) / Σ_{j ≠ i} exp(sim(y_i, x_j) / τ) )`` with sim the cosine, y_i the projected
    response to stimulus i and x_j the projected image of stimulus j. Responses are the anchors, and the positive pair
    is not in the denominator, so that the loss may be negative.

    ===================  =============  ===============================================================
    `include_positive`   `symmetric`    the loss
    ===================  =============  ===============================================================
    False                False          equation 1 of Mulrooney & Brockmeier
    True                 False          InfoNCE: cross-entropy of finding the image among all of the batch
    False                True           equation 1, averaged over response anchors and image anchors
    True                 True           CLIP's, which is NT-Xent between two modalities
    ===================  =============  ===============================================================

    NT-Xent of SimCLR itself has the other members of the anchor's own modality in the denominator as well; no
    combination here does.

    Parameters
    ----------
    z_responses, z_images : tensor of shape (n_batch, n_projected)
        Row i of both belongs to stimulus i. Computed in float32 where they are of less, also under autocast.
    temperature : float
        τ, > 0, in units of the cosine.
    include_positive : bool
        Let the denominator run over all j.
    symmetric : bool
        Average the losses of response anchors and of image anchors.

    Returns
    -------
    loss : tensor of shape (n_batch,)
        Nats.

    Raises
    ------
    RequestError
        Fewer than two stimuli, which have nothing to be contrasted with.

    References
    ----------
    Mulrooney & Brockmeier (2023), equation 1. Chen et al. (2020), SimCLR, section 2.1. Radford et al. (2021), CLIP,
    figure 3.
    """
    if len(z_responses) < 2:
        raise RequestError(
            f"A contrastive loss needs at least two stimuli in a batch, got {len(z_responses)}. Raise batch_size, or "
            "give more stimuli."
        )
    with torch.autocast(z_responses.device.type, enabled=False):
        y, x = (F.normalize(_at_least_float32(z), dim=1) for z in (z_responses, z_images))
        similarity = y @ x.T / temperature  # (n_batch, n_batch): anchors in rows
        loss = _of_rows(similarity, include_positive)
        if symmetric:
            loss = (loss + _of_rows(similarity.T, include_positive)) / 2
    return loss


def _of_rows(similarity: torch.Tensor, include_positive: bool) -> torch.Tensor:
    """Return the loss of each anchor from its row of scaled similarities, (n_batch,)."""
    positive = similarity.diagonal()
    if not include_positive:
        own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        similarity = similarity.masked_fill(own, -torch.inf)
    return similarity.logsumexp(dim=1) - positive


def _at_least_float32(z: torch.Tensor) -> torch.Tensor:
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
