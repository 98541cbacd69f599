"""The transformer workload: Meta-Weight-Net over a small text classifier with real attention.

Attention uses torch's fused kernel in passes differentiated once, and the plain one in passes
differentiated twice, which the fused one does not support.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from speed_bilevel import Batch, Task, by_losses
from speed_contenders import bilevel_contenders
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from turns import Step

from metaweight.weighting import MetaWeightNet

CLASSES = 4


class Encoder(nn.Module):
    """A pre-norm layer: attention, then two linear maps, each with a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, width) for (B, T, width)."""
        size, length, width = x.shape
        parts = self.queries_keys_values(self.norm1(x)).view(size, length, 3, self.heads, -1)
        attended = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        x = x + self.mixed(attended.transpose(1, 2).reshape(size, length, width))
        added: Tensor = x + self.narrower(F.gelu(self.wider(self.norm2(x))))
        return added


class TextClassifier(nn.Module):
    """Embeddings of words and positions, encoders, the mean over positions, a linear layer."""

    def __init__(self, words: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.encoders = nn.Sequential(*(Encoder(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, C) for tokens (B, T)."""
        encoded = self.encoders(self.words(tokens) + self.places)
        logits: Tensor = self.classes(self.norm(encoded).mean(1))
        return logits


def attention_differentiable_twice() -> AbstractContextManager[Any]:
    """Return a context in which attention is not fused."""
    return sdpa_kernel(SDPBackend.MATH)


def transformer_task(
    batch: int = 32,
    length: int = 64,
    words: int = 1000,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    batches: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """Return the task.

    Args:
        batch: Texts of a batch.
        length: Tokens of a text.
        words: Size of the vocabulary.
        width: Width of the embeddings.
        layers: Number of encoders.
        heads: Heads of the attention.
        batches: Different training batches.
        dtype: Precision of everything.
    """
    generator = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        tokens = torch.randint(0, words, (batch, length), generator=generator)
        return tokens, torch.randint(0, CLASSES, (batch,), generator=generator)

    def modules() -> tuple[nn.Module, nn.Module]:
        return TextClassifier(words, length, width, layers, heads), MetaWeightNet()

    return Task(
        modules=modules,
        train=[draw() for _ in range(batches)],
        judge=draw(),
        weigh=by_losses,
        sgd={"lr": 0.05, "momentum": 0.9},
        kernels=attention_differentiable_twice,
        dtype=dtype,
    )


def transformer_contenders(device: str = "cpu", **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; for ``sizes`` see :func:`transformer_task`."""
    return bilevel_contenders(partial(transformer_task, **sizes), device=device)
