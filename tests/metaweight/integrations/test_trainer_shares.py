"""Micro-batches of a Trainer count by their samples that have a label."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import Trainer

from metaweight.integrations.huggingface import ReweightingTrainer


@pytest.mark.parametrize("mark", [-1, -100])
def test_a_mean_over_micro_batches_is_that_over_all(
    mark: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [{"labels": torch.tensor(row)} for row in ([0, mark, 1, 1], [1, 0], [mark, mark])]
    losses = [torch.tensor(row) for row in ([1.0, 0.0, 2.0, 4.0], [8.0, 16.0], [0.0, 0.0])]
    items = sum(batch["labels"].ne(-100).sum() for batch in batches)
    monkeypatch.setattr(Trainer, "get_batch_samples", lambda *_: (batches, items))
    trainer: Any = object.__new__(ReweightingTrainer)
    trainer.label_names, trainer.current_gradient_accumulation_steps = ["labels"], 3
    _, number = trainer.get_batch_samples(iter(()), 3, torch.device("cpu"))
    total = torch.zeros(())
    for batch, row in zip(batches, losses, strict=True):
        kept = batch["labels"] != mark
        mean = row.sum() / kept.sum().clamp_min(1)
        total += trainer._share(batch, number) * mean / 3
    torch.testing.assert_close(total, torch.tensor(31.0) / 5)
