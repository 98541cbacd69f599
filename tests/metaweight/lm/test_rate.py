"""Ratings as a column: values, order, and what they leave as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.language import TinyLM, padded_batch, texts
from support.naive_language import program

from metaweight.lm import Rater, rate


def rated(level: str, dataset: list[Any], **options: Any) -> list[Any]:
    torch.manual_seed(0)
    model = TinyLM(dropout=0.5).double()
    lm, _ = program(model, [padded_batch(0)], level=level)
    model.train()
    model.words.eval()
    found = rate(lm, dataset, batch_size=4, **options)
    assert model.training and model.dropout.training and not model.words.training
    rated.lm = lm  # type: ignore[attr-defined]
    return found


def test_ratings_of_a_rater_compare_the_whole_dataset() -> None:
    dataset = [*texts(9), {"input_ids": [1, 2, 3], "labels": [-100] * 3}]
    found = rated("sequence", dataset)
    lm: Any = rated.lm  # type: ignore[attr-defined]
    lm.module.eval()
    whole = {"input_ids": torch.tensor([t["input_ids"] for t in dataset[:9]])}
    with torch.no_grad():
        tokens = lm.token_losses(whole)
        expected = lm.weigher(tokens.per_sequence(), tokens.hidden)
    ratings = torch.tensor([sample["rating"] for sample in found], dtype=torch.float64)
    torch.testing.assert_close(ratings[:9], expected)
    assert ratings[9] == 0 and ratings.sum().item() == pytest.approx(9)
    assert "rating" not in dataset[0]


def test_ratings_of_tokens_are_means() -> None:
    dataset = texts(5)
    found = rated("token", dataset)
    lm: Any = rated.lm  # type: ignore[attr-defined]
    lm.module.eval()
    with torch.no_grad():
        losses = lm.token_losses({"input_ids": torch.tensor([dataset[2]["input_ids"]])}).losses
        expected = lm.weigher.module(losses[0, :-1]).mean().item()
    assert found[2]["rating"] == pytest.approx(expected)


def test_sorted_and_kept() -> None:
    dataset = texts(3, source=0) + texts(3, source=1) + texts(4, source=2)
    plain = rated("source", dataset)
    ratings = [sample["rating"] for sample in plain]
    assert [sample["source"] for sample in plain] == [0] * 3 + [1] * 3 + [2] * 4
    assert len({*ratings}) == 3
    ordered = rated("source", dataset, sort=True, column="worth")
    assert [sample["worth"] for sample in ordered] == sorted(ratings, reverse=True)
    kept = rated("source", dataset, keep=0.5)
    assert len(kept) == 5
    assert [s["source"] for s in kept] == sorted(s["source"] for s in kept)
    assert min(s["rating"] for s in kept) >= sorted(ratings)[5]


def test_a_rater_starts_at_one() -> None:
    weights = Rater(4)(torch.rand(5), torch.rand(5, 4), torch.tensor([1, 1, 0, 1, 1]).bool())
    torch.testing.assert_close(weights, torch.tensor([1.0, 1, 0, 1, 1]))
    assert (Rater(4)(torch.rand(2), torch.rand(2, 4), torch.zeros(2).bool()) == 0).all()
