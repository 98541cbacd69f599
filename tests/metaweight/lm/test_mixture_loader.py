"""Draws by a mixture: their proportions, importance weights, and positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.resuming import difference

from metaweight.lm import MixtureLoader, Sources

SIZES = {"a": 5, "b": 3, "c": 12}


def dataset(name: str) -> list[Any]:
    return [{"input_ids": [ord(name), i]} for i in range(SIZES[name])]


def loader(mixture: Any = (0.2, 0.5, 0.3), size: int = 4, **settings: Any) -> MixtureLoader:
    return MixtureLoader({n: dataset(n) for n in SIZES}, size, mixture=mixture, **settings)


def test_draws_follow_the_mixture() -> None:
    """4000 draws: three standard deviations of a share are below 0.025."""
    made = loader(size=4000, explore=0.25)
    (batch,) = made
    expected = 0.75 * torch.tensor([0.2, 0.5, 0.3]) + 0.25 / 3
    sources = Sources(["a", "b", "c"]).numbers(batch["source"])
    torch.testing.assert_close(sources.bincount() / 4000, expected, atol=0.025, rtol=0)
    torch.testing.assert_close(batch["proposal"], 3 * expected[sources])
    assert (batch["input_ids"][:, 0] == torch.tensor([97, 98, 99])[sources]).all()


@pytest.mark.parametrize("order", ["abc", "cab"])
def test_sources_are_known_by_name_in_any_order(order: str) -> None:
    """Given shares, the loader's order is not that of whoever reads its sources."""
    (batch,) = loader(size=20)
    read = Sources([*order])
    names = [read.names[number] for number in read.numbers(batch["source"])]
    assert names == [chr(first) for first in batch["input_ids"][:, 0]]


def test_importance_weights_of_a_mixture_that_has_moved_on() -> None:
    """With weights ``k p_s / proposal`` the expectation of ``f(s)`` is that under ``p``."""
    sources = Sources(["c", "a", "b"])
    made = loader(sources, refresh=1000)
    next(iter(made))
    sources.logits.data = torch.tensor([1.0, -1.0, 0.5])
    batch = next(iter(made))
    m = (batch["proposal"] / 3).unique()
    assert torch.allclose(m, torch.full((1,), 1 / 3)), "it was read again too early"
    weights = sources(batch["source"]) / batch["proposal"]
    f = torch.tensor([3.0, 1.0, 7.0])
    p = sources.logits.softmax(0)
    each = {int(s): w for s, w in zip(batch["source"], weights, strict=True)}
    for s, weight in each.items():
        torch.testing.assert_close(weight, p[s] * 3)
    under_m = sum(f[s] * 3 * p[s] / 3 for s in range(3))
    torch.testing.assert_close(under_m, (f * p).sum())


def test_the_learned_mixture_is_read_again() -> None:
    sources = Sources(["a", "b", "c"])
    made = loader(sources, refresh=2, explore=0.0)
    batches = iter(made)
    next(batches)
    sources.logits.data = torch.tensor([0.0, 50.0, 0.0])
    assert (next(batches)["proposal"] == 1).all()
    assert (next(batches)["proposal"] == 3).all()


def test_each_sample_comes_once_before_any_comes_again() -> None:
    made = loader(size=4, explore=0.0, mixture=(0.0, 0.0, 1.0))
    seen = torch.cat([batch["input_ids"][:, 1] for _ in range(2) for batch in made])
    turns = seen[:36].view(3, 12)
    assert turns.sort(1).values.tolist() == [list(range(12))] * 3
    assert turns[0].tolist() != turns[1].tolist()


def test_a_seed_gives_the_same_batches() -> None:
    assert not difference(list(loader(seed=3)), list(loader(seed=3)))
    assert difference(list(loader(seed=3)), list(loader(seed=4)))


def test_it_goes_on_where_it_was_saved() -> None:
    sources = Sources(["a", "b", "c"])
    made = loader(sources, refresh=4)
    assert len(made) == 5
    batches = iter(made)
    for _ in range(2):
        next(batches)
    state = made.state_dict()
    expected = [*batches, *made]
    other = loader(sources, refresh=4, seed=9)
    other.load_state_dict(state)
    rest = list(other)
    assert len(rest) == 3
    assert not difference(expected, [*rest, *other])


def test_a_state_of_another_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="build the loader as it was when saved"):
        loader().load_state_dict(loader(size=5).state_dict())


def test_two_processes_share_the_batches_of_one() -> None:
    whole = list(loader(size=4))
    halves = [loader(size=2), loader(size=2)]
    for rank, half in enumerate(halves):
        half.take_share(rank, 2)
    for batch, *parts in zip(whole, *halves, strict=True):
        for rank, part in enumerate(parts):
            for name, whole_part in batch.items():
                expected = whole_part[rank::2]
                same = part[name] == expected
                assert same if isinstance(expected, list) else same.all(), name
