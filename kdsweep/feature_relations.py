"""How two networks' pooled features of a batch compare: by themselves, by distances and angles, by similarities.

Features are (batch, features). The student and the teacher may have different numbers of them, except where it says
otherwise. Each function returns the mean over the batch, a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Keeps a root's gradient finite, as in the authors' code.
SQUARED_FLOOR = 1e-12


def mismatch(ours: Tensor, theirs: Tensor, distance: str) -> Tensor:
    """Compares features one by one: "mse" is their mean squared difference, "cosine" 1 - cosine of the two vectors.

    Args:
        ours: (batch, features).
        theirs: (batch, features), as many.
        distance: "mse" or "cosine".
    """
    if distance == "mse":
        return F.mse_loss(ours, theirs)
    return (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()


def projected(features: Tensor, projector: Tensor) -> Tensor:
    """Maps features (B, F) to (B, G) by a projector (G, F + 1): the matrix of a linear map, then its bias."""
    return F.linear(features, projector[:, :-1], projector[:, -1])


def distance_mismatch(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the distances of all pairs, each divided by the mean distance in its batch (RKD-D)."""
    ours, theirs = (_distances(_squared_distances(features)) for features in (student, teacher))
    return F.smooth_l1_loss(_by_mean(ours), _by_mean(theirs))


def angle_mismatch(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the cosines of the angles of all triples (RKD-A)."""
    ours, theirs = (_cosines(_squared_distances(features)) for features in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def similarity_mismatch(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the similarity matrices, whose rows have length 1 (SP)."""
    ours, theirs = (F.normalize(_products(features), dim=1).to(features.dtype) for features in (student, teacher))
    return F.mse_loss(ours, theirs)


def _products(features: Tensor) -> Tensor:
    """The inner products of all pairs (B, B) in float64, which neither autocast nor TF32 round.

    Distances are differences of these, and so would lose most of their digits.
    """
    exact = features.double()
    return exact @ exact.T


def _squared_distances(features: Tensor) -> Tensor:
    """The squared distances of all pairs, (B, B)."""
    products = _products(features - features.mean(dim=0))
    own = products.diagonal()
    return (own[:, None] + own - 2 * products).to(features.dtype)


def _distances(squared: Tensor) -> Tensor:
    """The distances (B, B) of squared ones; 0 on the diagonal, without a gradient."""
    return squared.clamp_min(SQUARED_FLOOR).sqrt() * _others(squared)


def _by_mean(distances: Tensor) -> Tensor:
    """Distances divided by the mean over all pairs of different examples."""
    n = len(distances)
    return distances / (distances.sum() / max(n * (n - 1), 1)).clamp_min(SQUARED_FLOOR)


def _cosines(squared: Tensor) -> Tensor:
    """The cosine of the angle at example i between the directions to j and to k, (B, B, B); 0 where i is j or k.

    By the law of cosines; without the differences of all pairs, which have as many numbers more as there are features.
    """
    inverse = _others(squared) / squared.clamp_min(SQUARED_FLOOR).sqrt()  # (B, B)
    products = (squared[:, :, None] + squared[:, None, :] - squared) / 2  # (B, B, B)
    return products * inverse[:, :, None] * inverse[:, None, :]


def _others(matrix: Tensor) -> Tensor:
    """1 where row and column differ, and 0 on the diagonal, of the matrix's type."""
    return 1 - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
