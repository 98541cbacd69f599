from __future__ import annotations

from collections import Counter

import pytest
import torch
from support.devices import DEVICES

from metaweight.noise import inject_label_noise

CLASSES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(size: int = 1000, classes: int = CLASSES) -> torch.Tensor:
    return torch.randint(classes, (size,), generator=generator(7))


def confusion(true: torch.Tensor, noisy: torch.Tensor, classes: int = CLASSES) -> torch.Tensor:
    """Shares of noisy labels for each true one, counted one by one."""
    seen = Counter(zip(true.tolist(), noisy.tolist(), strict=True))
    counts = [[seen[t, n] for n in range(classes)] for t in range(classes)]
    table = torch.tensor(counts, dtype=torch.float64)
    return table / table.sum(1, keepdim=True)


def cyclic(*shares: float) -> torch.Tensor:
    """The circulant matrix whose first row is ``shares``."""
    row = torch.tensor(shares, dtype=torch.float64)
    return torch.stack([row.roll(i) for i in range(len(shares))])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uniform", cyclic(0.68, 0.08, 0.08, 0.08, 0.08)),
        ("uniform_exclusive", cyclic(0.6, 0.1, 0.1, 0.1, 0.1)),
        ("flip", cyclic(0.6, 0.4, 0, 0, 0)),
        ("flip_two", cyclic(0.6, 0.2, 0.2, 0, 0)),
    ],
)
def test_shares_follow_the_published_transition_matrix(kind, expected):
    true = labels(20_000)
    result = inject_label_noise(true, 0.4, num_classes=CLASSES, kind=kind, generator=generator())
    # About 4000 items a class: five standard deviations of a share are at most 0.04.
    torch.testing.assert_close(confusion(true, result.noisy), expected, atol=0.04, rtol=0)
    assert ((confusion(true, result.noisy) > 0) == (expected > 0)).all()


def test_uniform_is_the_default():
    results = [
        inject_label_noise(labels(), 0.5, num_classes=CLASSES, kind=kind, generator=generator())
        for kind in (None, "uniform")
    ]
    assert torch.equal(results[0].noisy, results[1].noisy)


@pytest.mark.parametrize("kind", ["uniform_exclusive", "flip", "flip_two"])
@pytest.mark.parametrize(
    ("size", "rate", "wrong"),
    [(100, 0.29, 29), (1000, 0.4, 400), (7, 0.5, 3), (9, 1, 9), (9, 0, 0)],
)
def test_exactly_the_share_asked_for_is_wrong(kind, size, rate, wrong):
    true = labels(size)
    result = inject_label_noise(true, rate, num_classes=CLASSES, kind=kind, generator=generator())
    assert int(result.mask.sum()) == wrong
    assert [n != t for n, t in zip(result.noisy.tolist(), true.tolist(), strict=True)] == (
        result.mask.tolist()
    )


def test_uniform_keeps_the_expected_part_of_the_chosen_items():
    result = inject_label_noise(labels(), 1, num_classes=CLASSES, generator=generator())
    # Binomial with n = 1000 and p = 4/5: five standard deviations are 63.
    assert abs(int(result.mask.sum()) - 800) < 63


def test_every_item_is_as_likely_to_be_chosen():
    true, source, repetitions = labels(20), generator(), 1000
    hits = torch.zeros(20)
    for _ in range(repetitions):
        hits += inject_label_noise(
            true, 0.3, num_classes=CLASSES, kind="flip", generator=source
        ).mask
    # Binomial with n = 1000 and p = 0.3: five standard deviations are 73.
    assert (hits - 300).abs().max() < 73


def test_flip_follows_a_mapping_and_fixed_classes_stay():
    mapping = [0, 0, 4, 3, 2]
    for given in (mapping, torch.tensor(mapping)):
        result = inject_label_noise(
            labels(), 1.0, num_classes=CLASSES, kind="flip", flip_to=given, generator=generator()
        )
        assert result.noisy.tolist() == [mapping[c] for c in labels().tolist()]


def test_transition_rows_are_the_probabilities():
    matrix = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    true = labels(12_000, 3)
    result = inject_label_noise(true, num_classes=3, transition=matrix, generator=generator())
    shares = confusion(true, result.noisy, 3)
    # About 4000 items a class: five standard deviations of a share are at most 0.04.
    torch.testing.assert_close(shares, matrix.double(), atol=0.04, rtol=0)
    assert ((shares > 0) == (matrix > 0)).all()
    assert torch.equal(result.mask, result.noisy != true)


def test_a_permutation_matrix_is_deterministic():
    matrix = torch.eye(CLASSES).roll(2, dims=1)
    result = inject_label_noise(
        labels(), num_classes=CLASSES, transition=matrix, generator=generator()
    )
    assert torch.equal(result.noisy, (labels() + 2) % CLASSES)


@pytest.mark.parametrize("arguments", [{"rate": 0.5}, {"transition": torch.full((5, 5), 0.2)}])
def test_labels_are_not_written_and_only_the_generator_is_used(arguments):
    true = labels()
    before = torch.random.get_rng_state()
    first, again, other = (
        inject_label_noise(true, num_classes=CLASSES, generator=generator(s), **arguments)
        for s in (1, 1, 2)
    )
    assert torch.equal(true, labels())
    assert torch.equal(first.clean, true)
    assert len({t.data_ptr() for t in (true, first.clean, first.noisy)}) == 3
    assert torch.equal(first.noisy, again.noisy)
    assert not torch.equal(first.noisy, other.noisy)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("arguments", [{"rate": 0.5}, {"transition": torch.full((5, 5), 0.2)}])
def test_no_labels_give_no_noise(arguments):
    empty = torch.empty(0, dtype=torch.int64)
    result = inject_label_noise(empty, num_classes=CLASSES, generator=generator(), **arguments)
    assert [t.shape for t in result] == [(0,)] * 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arguments", [{"rate": 0.5}, {"transition": torch.full((5, 5), 0.2)}])
def test_draws_do_not_depend_on_the_device_of_the_labels(arguments, device):
    here, there = (
        inject_label_noise(
            labels().to(place), num_classes=CLASSES, generator=generator(), **arguments
        )
        for place in ("cpu", device)
    )
    assert there.noisy.device.type == device
    assert all(torch.equal(h, t.cpu()) for h, t in zip(here, there, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.1}, r"rate 1.1 was asked for; use a share in \[0, 1\]"),
        ({"rate": -0.1}, "rate -0.1"),
        ({"rate": float("nan")}, "rate nan"),
        ({}, "Neither rate nor transition was given; give one"),
        ({"rate": 0.1, "num_classes": 1}, "num_classes=1 was given; label noise needs at least 2"),
        ({"rate": 0.1, "num_classes": 4}, r"span 0 to 4 but num_classes=4; .* \[0, 4\)"),
        ({"rate": 0.1, "labels": torch.tensor([-1])}, "Labels span -1 to -1"),
        ({"rate": 0.1, "labels": torch.tensor([0.0])}, r"shape \(1,\) and type torch.float32"),
        ({"rate": 0.1, "labels": torch.tensor([[0]])}, r"shape \(1, 1\) and type .*; give int64"),
        ({"rate": 0.1, "kind": "pairs"}, "kind='pairs' was asked for; use one of uniform, .*flip"),
        ({"rate": 0.1, "flip_to": [0] * 5}, "flip_to was given with kind='uniform'"),
        ({"rate": 0.1, "kind": "flip", "flip_to": [0, 1]}, r"shape \(2,\) was given; give one"),
        ({"rate": 0.1, "kind": "flip", "flip_to": [5] * 5}, "Entries of flip_to span 5 to 5"),
        ({"rate": 0.1, "transition": torch.eye(5)}, "transition was given together with rate"),
        ({"kind": "flip", "transition": torch.eye(5)}, "leave out one or the other"),
        ({"flip_to": [0] * 5, "transition": torch.eye(5)}, "leave out one or the other"),
        ({"transition": torch.eye(4)}, r"shape \(4, 4\) was given for 5 classes"),
        ({"transition": 0.9 * torch.eye(5)}, "not row-stochastic: .* sum to 0.9 … 0.9"),
        ({"transition": 2 * torch.eye(5) - 0.2}, "not row-stochastic: its entries go down to -0.2"),
        ({"transition": torch.full((5, 5), float("nan"))}, "not row-stochastic"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    given = {"labels": torch.arange(5), "num_classes": CLASSES} | arguments
    with pytest.raises(ValueError, match=message):
        inject_label_noise(**given, generator=generator())


def test_flip_two_needs_three_classes():
    with pytest.raises(ValueError, match="num_classes=2, where the second next class is the true"):
        inject_label_noise(
            torch.tensor([0, 1]), 0.5, num_classes=2, kind="flip_two", generator=generator()
        )


def test_half_of_ten_classes_relabelled_makes_nine_tenths_of_that_wrong():
    true = labels(20_000, 10)
    share = inject_label_noise(true, 0.5, num_classes=10, generator=generator()).mask
    # 10 000 draws, of which each is wrong with chance 0.9: eight standard deviations.
    assert abs(float(share.double().mean()) - 0.45) < 0.012


def test_rate_zero_is_the_identity_and_exclusive_rate_one_leaves_nothing():
    true = labels(20_000, 10)
    for kind in (None, "uniform_exclusive", "flip", "flip_two"):
        none = inject_label_noise(true, 0, num_classes=10, kind=kind, generator=generator())
        assert torch.equal(none.noisy, true)
        assert not none.mask.any()
    everything = inject_label_noise(
        true, 1, num_classes=10, kind="uniform_exclusive", generator=generator()
    )
    assert everything.mask.all()
    assert ((everything.noisy >= 0) & (everything.noisy < 10)).all()


def test_noise_upon_noise_starts_from_what_it_was_given():
    first = inject_label_noise(labels(), 0.3, num_classes=CLASSES, generator=generator())
    second = inject_label_noise(first.noisy, 0.3, num_classes=CLASSES, generator=generator(1))
    assert torch.equal(first.clean, labels())
    assert torch.equal(second.clean, first.noisy)
