"""The short way finds the source and the sequences that were planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.language import TinyLM, texts

from metaweight import Reweighting
from metaweight.lm import learn_weights


def test_a_source_in_random_order_is_found() -> None:
    torch.manual_seed(0)
    train = texts(60, 0, source="books") + texts(60, 1, source="web")
    train += texts(60, 2, shuffled=True, source="noise")
    model = TinyLM(16)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    found = learn_weights(model, train, texts(40, 3), steps=60, optimizer=optimizer)
    assert sum(found.sources.values()) == pytest.approx(3)
    assert found.sources["noise"] / 3 < 0.05, found.sources


def test_sequences_in_random_order_are_rated_lower() -> None:
    torch.manual_seed(0)
    train = texts(60, 0, noise=0) + texts(30, 1, shuffled=True, noise=1)
    model = TinyLM(16)
    found = learn_weights(
        model,
        train,
        texts(40, 3),
        level="sequence",
        steps=60,
        batch_size=24,
        micro_batch_size=12,
        optimizer=torch.optim.AdamW(model.parameters(), 0.03),
        weight_learning_rate=0.01,
    )
    best = found.rate(train, keep=2 / 3)
    assert sum(sample["noise"] for sample in best) <= 2


def test_weights_are_learned_at_every_fourth_step() -> None:
    train = texts(9, source="a") + texts(9, 1, True, source="b")
    found = learn_weights(TinyLM(), train, texts(9, 2), steps=14, warmup_steps=2, every=4)
    assert (found.lm.count, found.learner.count) == (14, 3)


def test_a_seed_gives_the_same_weights() -> None:
    train = texts(9, source="a") + texts(9, 1, True, source="b")

    def learned(level: Any, seed: int) -> list[float]:
        torch.manual_seed(0)
        found = learn_weights(TinyLM(), train, texts(9, 2), level=level, steps=3, seed=seed)
        return [sample["rating"] for sample in found.rate(train)]

    for level in ("source", "sequence"):
        assert learned(level, 1) == learned(level, 1)
        assert learned(level, 1) != learned(level, 2)


@pytest.mark.parametrize("level", ["source", "sequence"])
def test_in_sixteen_bits(level: Any) -> None:
    train = texts(30, source="a") + texts(30, 1, True, source="b")
    model = TinyLM(16).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = learn_weights(model, train, texts(9, 2), level=level, steps=20, optimizer=optimizer)
    assert found.lm.hypergradient == Reweighting(derivative="forward_mode")
    ratings = torch.tensor([sample["rating"] for sample in found.rate(train)])
    assert ratings[:30].mean() > ratings[30:].mean()
