"""Random streams captured and replayed, whatever drew from them in between."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from metaweight.problems.state.random_streams import RandomState, preserved_streams
from support.devices import DEVICES

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Start from fixed seeds and leave the streams as they were found."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    yield
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "torch normal": lambda: float(torch.randn(3)[2]),
    "python": random.random,
    "python normal": lambda: random.gauss(0.0, 1.0),
    "numpy": lambda: float(np.random.rand()),
    "numpy normal": lambda: float(np.random.randn()),
    "numpy integers": lambda: float(np.random.randint(1000)),
}


@pytest.mark.parametrize("stream", DRAWS)
def test_a_restored_stream_gives_the_same_numbers(stream: str) -> None:
    draw = DRAWS[stream]
    for earlier, drawn in itertools.product(range(4), range(1, 5)):
        for _ in range(earlier):
            draw()
        state = RandomState(CPU)
        first = [draw() for _ in range(drawn)]
        for _ in range(2):
            state.restore()
            assert [draw() for _ in range(drawn)] == first, (earlier, drawn)


@pytest.mark.parametrize("stream", DRAWS)
def test_what_is_drawn_inside_leaves_no_trace_outside(stream: str) -> None:
    draw = DRAWS[stream]
    state = RandomState(CPU)
    plain = [draw() for _ in range(6)]
    state.restore()
    disturbed = []
    for _ in range(6):
        with preserved_streams(CPU):
            draw()
        disturbed.append(draw())
    assert disturbed == plain


def test_streams_are_restored_after_an_exception() -> None:
    state = RandomState(CPU)
    plain = [draw() for draw in DRAWS.values()]
    state.restore()
    with pytest.raises(RuntimeError, match="inside"), preserved_streams(CPU):
        for draw in DRAWS.values():
            draw()
        raise RuntimeError("inside")
    assert [draw() for draw in DRAWS.values()] == plain


def test_a_gaussian_kept_for_later_is_replayed() -> None:
    # randn makes two numbers and keeps the second; using it up moves no word of the generator.
    np.random.randn()
    state = RandomState(CPU)
    kept = np.random.randn()
    after = RandomState(CPU)
    fresh = np.random.randn()
    state.restore()
    assert np.random.randn() == kept
    assert np.random.randn() == fresh
    after.restore()
    assert np.random.randn() == fresh


@pytest.mark.parametrize("stream", ["numpy normal", "python normal"])
def test_a_state_seen_before_but_for_its_gaussian_is_not_mistaken_for_it(stream: str) -> None:
    draw = DRAWS[stream]
    draw()
    draw()
    RandomState(CPU)
    # The same words again, now with a Gaussian pending.
    random.seed(0)
    np.random.seed(0)
    draw()
    state = RandomState(CPU)
    pending = draw()
    state.restore()
    assert draw() == pending


def test_states_are_restored_in_any_order() -> None:
    dice = random.Random(5)
    states, numbers = [], []
    for _ in range(12):
        for _ in range(dice.randrange(3)):
            dice.choice(list(DRAWS.values()))()
        states.append(RandomState(CPU))
        numbers.append([draw() for draw in DRAWS.values()])
    for _ in range(60):
        which = dice.randrange(12)
        states[which].restore()
        for _ in range(dice.randrange(2)):
            RandomState(CPU)
        assert [draw() for draw in DRAWS.values()] == numbers[which]


def test_a_reseeded_generator_is_seen() -> None:
    state = RandomState(CPU)
    first = (random.random(), np.random.rand())
    random.seed(123)
    np.random.seed(123)
    RandomState(CPU)
    state.restore()
    assert (random.random(), np.random.rand()) == first


@pytest.mark.parametrize("kind", ["PCG64", "Philox", "SFC64", "MT19937"])
def test_another_bit_generator_of_numpy_is_replayed(kind: str) -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(getattr(np.random, kind)(7))
        np.random.randn()
        state = RandomState(CPU)
        first = [np.random.rand(), np.random.randn(), np.random.randn(), np.random.randn()]
        state.restore()
        assert [np.random.rand(), np.random.randn(), np.random.randn(), np.random.randn()] == first
    finally:
        np.random.set_bit_generator(before)
    state = RandomState(CPU)
    first_of_old = np.random.rand()
    state.restore()
    assert np.random.rand() == first_of_old


@pytest.mark.parametrize("device", DEVICES)
def test_the_stream_of_the_device_is_replayed(device: str) -> None:
    state = RandomState(torch.device(device))
    first = torch.rand(3, device=device)
    state.restore()
    assert torch.equal(torch.rand(3, device=device), first)
