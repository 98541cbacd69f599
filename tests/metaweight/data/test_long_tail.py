from __future__ import annotations

import pytest
import torch

from metaweight.data import LabelledTensors, long_tailed, long_tailed_counts


def balanced(per_class: int, classes: int) -> LabelledTensors:
    labels = torch.arange(classes).repeat(per_class)
    size = len(labels)
    return LabelledTensors(torch.zeros(size, 1), labels, labels, torch.arange(size), classes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_published_counts_of_cifar10_lt():
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(5000, 100, 10) == published


def test_published_ends_of_cifar100_lt():
    counts = long_tailed_counts(500, 100, 100)
    assert (counts[0], counts[-1], sum(counts)) == (500, 5, 10847)


def test_factor_one_is_balanced():
    assert long_tailed_counts(7, 1, 3) == [7, 7, 7]


def test_rounding_does_not_lose_a_sample():
    assert int(49 * 49**-1.0) == 0
    assert long_tailed_counts(49, 49, 2) == [49, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0.5, 3), "factor 0.5 was asked for; use a finite factor ≥ 1"),
        ((10, float("nan"), 3), "factor nan"),
        ((10, float("inf"), 3), "factor inf"),
        ((10, 11, 3), "leaves the rarest class empty; use a factor ≤ 10"),
        ((10, 2, 1), "num_classes=1 was given; a long tail needs at least 2"),
    ],
)
def test_impossible_tails_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tailed_counts(*arguments)


def test_the_subset_has_the_counts_by_rank():
    data = balanced(40, 4)
    order = [2, 0, 3, 1]
    tail = long_tailed(data, 8, class_order=order, generator=generator())
    counts = tail.class_counts().tolist()
    assert [counts[c] for c in order] == [40, 20, 10, 5]
    assert long_tailed(data, 8, generator=generator()).class_counts().tolist() == [40, 20, 10, 5]
    indices = tail.indices.tolist()
    assert indices == sorted(set(indices))
    assert torch.equal(tail.labels, data.labels[tail.indices])


def test_the_smallest_class_sets_the_largest_rank():
    data = balanced(10, 2).concat(balanced(5, 2).subset(torch.tensor([0, 2])))
    assert data.class_counts().tolist() == [12, 10]
    assert long_tailed(data, 2, generator=generator()).class_counts().tolist() == [10, 5]


def test_every_sample_is_as_likely():
    data, generator_, repetitions = balanced(6, 2), generator(1), 600
    chosen = torch.zeros(len(data))
    for _ in range(repetitions):
        chosen[long_tailed(data, 2, generator=generator_).indices] += 1
    assert torch.equal(chosen[data.labels == 0], torch.full((6,), float(repetitions)))
    # Binomial with n = 600 and p = 1/2: five standard deviations are 61.
    assert (chosen[data.labels == 1] - repetitions / 2).abs().max() < 61


def test_the_generator_alone_decides():
    data = balanced(20, 3)
    before = torch.random.get_rng_state()
    first, again, other = (long_tailed(data, 4, generator=generator(s)).indices for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], torch.tensor([1, 2, 3])])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="for 3 classes; give every class from 0 to 2 once"):
        long_tailed(balanced(4, 3), 2, class_order=order, generator=generator())
