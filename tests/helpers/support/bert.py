"""A BERT of two layers with random parameters, and texts that it can tell apart."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

WORDS, LENGTH = 50, 8


def bert(dropout: float = 0.1, seed: int = 0, **config: Any) -> BertForSequenceClassification:
    """Return a network of 16 units that reads texts of :func:`texts`."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **config,
        )
    )


def texts(number: int, noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Return texts whose class is whether their first word is of the second half of all words; of
    some, the other one."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (number, LENGTH), generator=draw)
    classes = (words[:, 0] >= WORDS // 2) ^ (torch.rand(number, generator=draw) < noise)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(label)}
        for row, label in zip(words, classes, strict=True)
    ]


def arguments(folder: Any, **changed: Any) -> TrainingArguments:
    """Return arguments of a quiet run on the CPU that draws its texts in order."""
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 20,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    return TrainingArguments(str(folder), **{**settings, **changed})
