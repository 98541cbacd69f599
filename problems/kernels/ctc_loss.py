"""The loss of connectionist temporal classification, composed of operations that can be
differentiated twice and forward.

With the labels ``y`` spaced by blanks, ``z = (-, y_1, -, ..., y_L, -)``, and ``p`` the given
probabilities, the probability of all alignments of the first ``t`` steps that end at ``z_s`` is ::

    α_t(s) = (α_{t-1}(s) + α_{t-1}(s-1) + [z_s ≠ -, z_s ≠ z_{s-2}] α_{t-1}(s-2)) p_t(z_s)

Source: Graves et al., "Connectionist Temporal Classification", ICML 2006.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .margin_losses import reduced

IMPOSSIBLE = -1e30
"""The logarithm of 0, finite so that its derivatives are 0."""


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: Any = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Return the loss that ``F.ctc_loss`` returns, for log probabilities (T, N, C) or (T, C)."""
    single = log_probs.ndim == 2
    emitted = log_probs.unsqueeze(1) if single else log_probs
    device = emitted.device
    steps = torch.as_tensor(input_lengths, device=device).reshape(-1)
    lengths = torch.as_tensor(target_lengths, device=device).reshape(-1)
    labels = _spaced(targets.to(device), lengths, blank)
    ends = _alignments(emitted, labels, steps, blank)
    last = (2 * lengths).unsqueeze(1)
    before = ends.gather(1, (last - 1).clamp(min=0)).masked_fill(last == 0, IMPOSSIBLE)
    losses = -torch.cat([ends.gather(1, last), before], 1).logsumexp(1)
    losses = losses.masked_fill(losses > -0.5 * IMPOSSIBLE, 0.0 if zero_infinity else torch.inf)
    if reduction in ("mean", 1):
        return (losses / lengths.clamp(min=1)).mean()
    return reduced(losses[0] if single else losses, "sum" if reduction in ("sum", 2) else "none")


def _spaced(targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Return the labels with a blank before, between and after them, shape (N, 2 S + 1)."""
    if targets.ndim == 1:
        # One after the other, or those of a single sample.
        starts = lengths.cumsum(0) - lengths
        places = starts.unsqueeze(1) + torch.arange(int(lengths.max()), device=targets.device)
        targets = targets[places.clamp(max=max(len(targets) - 1, 0))] if len(targets) else places
    spaced = targets.new_full((len(targets), 2 * targets.shape[1] + 1), blank)
    spaced[:, 1::2] = targets
    return spaced


def _alignments(emitted: Tensor, labels: Tensor, steps: Tensor, blank: int) -> Tensor:
    """Return ``log α_T``, shape (N, 2 S + 1)."""
    # Beyond a sample's own labels anything may stand, since nothing leads back.
    of_labels = emitted.gather(2, labels.clamp(min=0).expand(len(emitted), *labels.shape))
    skips = (labels != blank) & (labels != labels.roll(2, 1))
    skips[:, :2] = False
    places = torch.arange(labels.shape[1], device=labels.device)
    alpha = of_labels[0].masked_fill(places > 1, IMPOSSIBLE)
    for t in range(1, len(emitted)):
        moved = [F.pad(alpha, (n, 0), value=IMPOSSIBLE)[:, : labels.shape[1]] for n in (1, 2)]
        ways = torch.stack([alpha, moved[0], moved[1].masked_fill(~skips, IMPOSSIBLE)])
        following = (ways.logsumexp(0) + of_labels[t]).clamp(min=IMPOSSIBLE)
        alpha = torch.where((t < steps).unsqueeze(1), following, alpha)
    return alpha
