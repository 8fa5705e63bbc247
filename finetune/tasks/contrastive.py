"""What a bi-encoder learns from: losses over the vectors of texts that belong together, or do not, or to a degree.

Vectors have the shape (rows, parts, width): a row's anchor, its positive, and with triplets its negative; or its two
texts. Similarity is the cosine everywhere. Tests hold each loss to the one of sentence-transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def same_texts(input_ids: torch.Tensor, parts: int) -> torch.Tensor:
    """Return a number for each text, equal where the model reads equal tokens, shape (rows, parts)."""
    import torch

    texts: torch.Tensor = torch.unique(input_ids, dim=0, return_inverse=True)[1]
    return texts.reshape(-1, parts)


def also_right(texts: torch.Tensor) -> torch.Tensor:
    """Tell which candidates are no negatives of an anchor, shape (anchors, candidates).

    The candidates are the positives of all rows, then the negatives. Right beside the anchor's own positive is every
    candidate with the same text as that or as the anchor, and the positive of every row with the same anchor.
    """
    anchors, positives, candidates = texts[:, :1], texts[:, 1:2], texts[:, 1:].T.reshape(-1)
    right = (candidates == positives) | (candidates == anchors)
    right[:, : len(texts)] |= anchors == anchors.T
    return right.fill_diagonal_(False)


def in_batch_losses(vectors: torch.Tensor, right: torch.Tensor, *, scale: float, symmetric: bool) -> torch.Tensor:
    """Return for each row the cross-entropy of finding its positive among all candidates of the batch, shape (rows,).

    Multiple negatives ranking (Henderson et al. 2017, section 4.4): the logits are cosines times `scale`, and what is
    `also_right` is left out. `symmetric` adds the way back, from each positive to its anchor among all anchors, and
    takes the mean of both. It grows with the number of candidates: losses compare only for batches of one size.
    """
    import torch
    from torch.nn import functional

    anchors, candidates = vectors[:, 0], vectors[:, 1:].transpose(0, 1).flatten(0, 1)
    scores = scale * (functional.normalize(anchors, dim=-1) @ functional.normalize(candidates, dim=-1).T)
    scores = scores.masked_fill(right, -torch.inf)
    own = torch.arange(len(vectors), device=vectors.device)
    losses = functional.cross_entropy(scores, own, reduction="none")
    if not symmetric:
        return losses
    back = scores[:, : len(vectors)].T
    return (losses + functional.cross_entropy(back, own, reduction="none")) / 2


def triplet_losses(vectors: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Return by how much each negative is not further from its anchor than the positive and the margin, shape (rows,).

    The triplet loss of Schroff et al. 2015 with the cosine distance.
    """
    from torch.nn import functional

    anchors, positives, negatives = vectors.unbind(1)
    near = functional.cosine_similarity(anchors, positives, dim=-1)
    far = functional.cosine_similarity(anchors, negatives, dim=-1)
    return functional.relu(far - near + margin)


def cosine_errors(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of each pair's cosine from its target, shape (rows,)."""
    return (_cosines(vectors) - targets) ** 2


def cosent_losses(vectors: torch.Tensor, targets: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Return the CoSENT loss of a batch, the same for each row, shape (rows,).

    log(1 + Σ exp(scale · (cosine of pair i - cosine of pair j))) over all i and j of which j has the higher target (Su
    2022): of two pairs the cosines should be in the order of the targets, whatever these are.
    """
    import torch

    cosines = scale * _cosines(vectors)
    differences = (cosines[:, None] - cosines[None, :])[targets[:, None] < targets[None, :]]
    return torch.logsumexp(torch.cat([differences.new_zeros(1), differences]), dim=0).expand(len(cosines))


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=-1)
