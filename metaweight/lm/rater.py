"""A rating of sequences by the model's hidden states and their loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaweight.problems import LossError
from metaweight.problems.base.settings import require_count


class Rater(nn.Module):
    """``V_i = B exp(s_i) / Σ_j exp(s_j)``, scores ``s_i = MLP(norm(h_i), l_i)``.

    ``h_i`` is the mean hidden state of sequence i over the positions that count, ``l_i`` its mean
    token loss; both come from the pass of the losses, without a graph. Weights compare the B
    sequences of a whole batch, and have a mean of 1 over it. All are 1 at first.

    Args:
        hidden_size: Width of the hidden states, D.
        width: Width of its hidden layer.

    Source: Calian et al., "DataRater", 2025 (arXiv:2505.17895), which rates with a model of its
    own.
    """

    reads_hidden_states = True

    def __init__(self, hidden_size: int, width: int = 64) -> None:
        super().__init__()
        require_count("Rater", "hidden_size", hidden_size, least=1)
        require_count("Rater", "width", width, least=1)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        first, last = nn.Linear(hidden_size + 1, width), nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(first, nn.GELU(), last)
        self.hidden_size = hidden_size

    def scores(self, losses: Tensor, hidden: Tensor) -> Tensor:
        """Return ``s``, (B,), for losses (B,) and hidden states (B, D).

        Raises:
            LossError: For hidden states of another width.
        """
        width = self.hidden_size
        if hidden.shape != (len(losses), width):
            raise LossError(
                f"Rater({width}) received hidden states of shape {tuple(hidden.shape)} for "
                f"{len(losses)} losses; make it with hidden_size={hidden.shape[-1]}."
            )
        dtype = next(self.parameters()).dtype
        seen = torch.cat([self.norm(hidden.to(dtype)), losses.to(dtype).unsqueeze(1)], 1)
        found: Tensor = self.layers(seen)
        return found.squeeze(1)

    def forward(self, losses: Tensor, hidden: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return the weights, (B,); 0 where ``counted``, (B,), says that a sequence does not."""
        return mean_one(self.scores(losses, hidden), counted)


def mean_one(scores: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return ``n softmax(scores)`` over the n that count; 0 for the others."""
    if counted is None:
        return scores.softmax(0) * len(scores)
    # Not -inf: where none counts it would give no number.
    lowest = torch.finfo(scores.dtype).min
    shares = scores.masked_fill(~counted, lowest).softmax(0)
    return torch.where(counted, shares, 0) * counted.sum()
