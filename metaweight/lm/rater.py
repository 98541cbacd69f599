"""A rating of sequences by the model's hidden states and their losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import is_number, is_positive, require_count, shown


class Rater(nn.Module):
    """``V_i = B exp(s_i) / Σ_j exp(s_j)``, scores ``s_i = MLP(norm(h_i), l_i)``.

    ``h_i`` is the mean hidden state of sequence i over the positions that count, ``l_i`` its mean
    token loss; both come from the pass of the losses, without a graph. With a ``reference`` the
    scores are ``MLP(norm(h_i), (l_i - μ) / σ, (r_i - μ) / σ, (l_i - r_i) / σ)``, where ``r_i`` is
    the loss of a model of good texts (:func:`~metaweight.lm.reference_losses`), or by how much it
    is above that of a base: what this model finds hard too is no text of that kind, and what it
    finds easy and the trained model does not is worth learning. Weights compare the B sequences of
    a whole batch, and have a mean of 1 over it. All are 1 at first.

    Args:
        hidden_size: Width of the hidden states, D; 0 for scores of the losses alone.
        width: Width of its hidden layer.
        reference: Mean and deviation of the losses ``r`` over the data, ``(μ, σ)``, in nats a
            token. When left out, there is no reference.

    Raises:
        ConfigurationError: For sizes that are no counts, and a deviation that is not above 0.

    Sources: Calian et al., "DataRater", 2025 (arXiv:2505.17895), which rates with a model of its
    own; Mindermann et al., "Prioritized training on points that are learnable, worth learning, and
    not yet learnt", ICML 2022 (arXiv:2206.07137), for the difference from a reference.
    """

    compares_sequences = True
    reference_scale: Tensor | None

    def __init__(
        self, hidden_size: int, width: int = 64, *, reference: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        require_count("Rater", "hidden_size", hidden_size, least=0)
        require_count("Rater", "width", width, least=1)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False) if hidden_size else None
        # Saved with the parameters, which fit this scale alone.
        scale = None if reference is None else torch.tensor(_checked(reference))
        self.register_buffer("reference_scale", scale)
        losses = 1 if reference is None else 3
        first, last = nn.Linear(hidden_size + losses, width), nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(first, nn.GELU(), last)
        self.hidden_size = hidden_size

    @property
    def reads_hidden_states(self) -> bool:
        """Whether scores are a function of hidden states."""
        return self.hidden_size > 0

    @property
    def reads_reference(self) -> bool:
        """Whether scores are a function of the losses of a reference."""
        return self.reference_scale is not None

    def scores(
        self, losses: Tensor, hidden: Tensor | None = None, reference: Tensor | None = None
    ) -> Tensor:
        """Return ``s``, (B,), for losses (B,), hidden states (B, D) and losses of a reference (B,).

        Raises:
            LossError: Without what it reads, or for another shape of it.
        """
        dtype = next(self.parameters()).dtype
        seen = self._of_losses(losses.to(dtype), reference)
        if self.norm is not None:
            seen = torch.cat([self.norm(self._checked_hidden(losses, hidden).to(dtype)), seen], 1)
        found: Tensor = self.layers(seen)
        return found.squeeze(1)

    def forward(
        self,
        losses: Tensor,
        hidden: Tensor | None = None,
        counted: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Return the weights, (B,); 0 where ``counted``, (B,), says that a sequence does not."""
        return mean_one(self.scores(losses, hidden, reference), counted)

    def _of_losses(self, losses: Tensor, reference: Tensor | None) -> Tensor:
        """Return what is seen of the losses, (B, 1) or (B, 3)."""
        if self.reference_scale is None:
            return losses.unsqueeze(1)
        if reference is None or reference.shape != losses.shape:
            shape = None if reference is None else tuple(reference.shape)
            raise LossError(
                f"A Rater with a reference received reference losses of shape {shape} for "
                f"{len(losses)} losses; give one for each, as metaweight.lm.reference_losses "
                "computes them."
            )
        mean, deviation = self.reference_scale.to(losses.dtype)
        known = reference.to(losses.dtype)
        seen = torch.stack([losses - mean, known - mean, losses - known], 1)
        return seen.div(deviation)

    def _checked_hidden(self, losses: Tensor, hidden: Tensor | None) -> Tensor:
        width = self.hidden_size
        if hidden is None or hidden.shape != (len(losses), width):
            shape, size = (None, 0) if hidden is None else (tuple(hidden.shape), hidden.shape[-1])
            raise LossError(
                f"Rater({width}) received hidden states of shape {shape} for {len(losses)} losses; "
                f"make it with hidden_size={size}."
            )
        return hidden


def mean_one(scores: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return ``n softmax(scores)`` over the n that count; 0 for the others."""
    if counted is None:
        return scores.softmax(0) * len(scores)
    # Not -inf: where none counts it would give no number.
    lowest = torch.finfo(scores.dtype).min
    shares = scores.masked_fill(~counted, lowest).softmax(0)
    return torch.where(counted, shares, 0) * counted.sum()


def _checked(reference: Sequence[float]) -> tuple[float, float]:
    given = list(reference) if isinstance(reference, Sequence) else []
    if len(given) != 2 or not is_number(given[0]) or not is_positive(given[1]):
        raise ConfigurationError(
            f"Rater(reference={shown(reference)}) must be the mean and the deviation, above 0, of "
            "the losses of a reference over the data."
        )
    return float(given[0]), float(given[1])
