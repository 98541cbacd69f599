"""A causal language model of plain torch, and texts of numbers that it can learn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

WORDS, LENGTH = 12, 8


class TinyLM(nn.Module):
    """A recurrence with embeddings that are tied or not; returns ``.logits``, ``.hidden_states``.

    A number is read by position, so that what stands after it cannot matter to it.
    """

    def __init__(self, width: int = 8, tied: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.mix = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        read = self.words(input_ids)
        if attention_mask is not None:
            read = read * attention_mask.unsqueeze(2)
        past = read.cumsum(1) / (1 + torch.arange(read.shape[1], device=read.device)).unsqueeze(1)
        hidden = self.dropout(torch.tanh(self.mix(torch.cat([read, past], 2))))
        return SimpleNamespace(logits=self.head(hidden), hidden_states=(read, hidden))


def texts(number: int, seed: int = 0, shuffled: bool = False, **entries: Any) -> list[Any]:
    """Return sequences that count upwards from a random number, or the same in random order."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        ids = (torch.randint(WORDS, (1,), generator=draw) + torch.arange(LENGTH)) % WORDS
        if shuffled:
            ids = torch.randint(WORDS, (LENGTH,), generator=draw)
        found.append({"input_ids": ids.tolist(), **entries})
    return found


def padded_batch(seed: int, size: int = 6, left: bool = False, sources: int = 3) -> dict[str, Any]:
    """Return a batch of sequences of several lengths, the prompt of one of them without labels."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (size, LENGTH), generator=draw)
    lengths = torch.randint(3, LENGTH + 1, (size, 1), generator=draw)
    mask = (torch.arange(LENGTH) < lengths).long()
    mask = mask.flip(1) if left else mask
    labels = ids.clone()
    labels[0, :2] = -100
    source = torch.randint(sources, (size,), generator=draw)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "source": source}
