from __future__ import annotations

import re

import pytest
import torch

from metaweight.data import (
    PROTOCOLS,
    LabelledTensors,
    SemiSupervisedSplit,
    SplitSizes,
    out_of_distribution_pool,
    semi_supervised_split,
)

# Images of each digit in SVHN's training data.
SVHN_COUNTS = (4_948, 13_861, 10_585, 8_497, 7_458, 6_882, 5_727, 5_595, 5_045, 4_659)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(counts: tuple[int, ...], noise: bool = False) -> LabelledTensors:
    """``counts[c]`` samples of class c in mixed order, whose input tells their position."""
    clean = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    clean = clean[torch.randperm(len(clean), generator=seeded(9))]
    positions = torch.arange(len(clean))
    labels = torch.where(positions % 5 == 0, (clean + 1) % len(counts), clean) if noise else clean
    return LabelledTensors(positions.float()[:, None], labels, clean, positions + 100, len(counts))


def same(first: SemiSupervisedSplit, second: SemiSupervisedSplit) -> bool:
    return all(torch.equal(a.indices, b.indices) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("balanced", [True, False])
def test_the_parts_are_disjoint_complete_in_order_and_keep_their_labels(balanced):
    data = data_of((30, 20, 40), noise=True)
    split = semi_supervised_split(data, 12, validation=17, balanced=balanced, generator=seeded())
    assert [len(part) for part in split] == [12, 61, 17]
    everything = torch.cat([part.indices for part in split])
    assert torch.equal(everything.sort().values, data.indices)
    for part in split:
        assert part.indices.tolist() == sorted(part.indices.tolist())
        positions = part.indices - 100
        assert torch.equal(part.inputs, data.inputs[positions])
        assert torch.equal(part.labels, data.labels[positions])
        assert torch.equal(part.clean_labels, data.clean_labels[positions])
        assert part.num_classes == 3


def test_labelled_samples_are_balanced_by_true_class():
    data = data_of((30, 20, 40), noise=True)
    labelled = semi_supervised_split(data, 36, validation=5, generator=seeded()).labelled
    assert torch.bincount(labelled.clean_labels).tolist() == [12, 12, 12]
    assert labelled.wrong_labels.any()


def test_the_svhn_protocol_has_the_published_sizes():
    data = data_of(SVHN_COUNTS)
    assert len(data) == 73_257
    labelled, validation = PROTOCOLS["svhn-1000"]
    split = semi_supervised_split(data, labelled, validation=validation, generator=seeded())
    assert [len(part) for part in split] == [1_000, 64_931, 7_326]
    assert split.labelled.class_counts().tolist() == [100] * 10
    # Hypergeometric counts, five standard deviations around their means.
    for count, total in zip(split.validation.class_counts().tolist(), SVHN_COUNTS, strict=True):
        share = total / len(data)
        deviation = (validation * share * (1 - share) * (1 - validation / len(data))) ** 0.5
        assert abs(count - validation * share) < 5 * deviation


def test_the_protocols_are_fixed():
    assert dict(PROTOCOLS) == {
        "svhn-1000": SplitSizes(labelled=1_000, validation=7_326),
        "cifar10-4000": SplitSizes(labelled=4_000, validation=5_000),
        "cifar10-250": SplitSizes(labelled=250, validation=5_000),
        "cifar10-40": SplitSizes(labelled=40, validation=5_000),
    }
    with pytest.raises(TypeError):
        PROTOCOLS["svhn-1000"] = SplitSizes(1, 1)
    assert all(sizes.labelled % 10 == 0 for sizes in PROTOCOLS.values())


def test_every_sample_is_as_likely_to_be_labelled_without_balance():
    data = data_of((50, 150))
    drawn = torch.zeros(200)
    generator = seeded()
    repeats = 500
    for _ in range(repeats):
        split = semi_supervised_split(data, 20, balanced=False, generator=generator)
        drawn[split.labelled.indices - 100] += 1
    # Binomial counts with p = 0.1; the largest of 200 stays within five deviations.
    assert (drawn - repeats * 0.1).abs().max() < 5 * (repeats * 0.09) ** 0.5
    # All 10 000 draws together fall on the first class by its share, a quarter.
    first = drawn[data.clean_labels == 0].sum()
    assert abs(float(first) - 2_500) < 5 * (10_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("balanced", [True, False])
def test_the_generator_alone_decides(balanced):
    before = torch.random.get_rng_state()
    data = data_of((30, 20, 40))
    first, again, other = (
        semi_supervised_split(data, 9, validation=5, balanced=balanced, generator=seeded(s))
        for s in (1, 1, 2)
    )
    assert same(first, again)
    assert not torch.equal(first.labelled.indices, other.labelled.indices)
    assert not torch.equal(first.validation.indices, other.validation.indices)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("balanced", [True, False])
def test_more_labels_add_to_fewer_beside_the_same_validation_part(balanced):
    data = data_of((30, 20, 40))
    few, many = (
        semi_supervised_split(data, n, validation=10, balanced=balanced, generator=seeded())
        for n in (6, 24)
    )
    assert torch.equal(few.validation.indices, many.validation.indices)
    assert set(few.labelled.indices.tolist()) < set(many.labelled.indices.tolist())


def test_all_of_the_data_may_be_labelled():
    split = semi_supervised_split(data_of((4, 4)), 8, generator=seeded())
    assert [len(part) for part in split] == [8, 0, 0]


@pytest.mark.parametrize(
    ("labelled", "options", "message"),
    [
        (0, {}, "was asked for 0 labelled samples; use at least 1."),
        (3, {"validation": -1}, "was asked for -1 validation samples; use 0 or more."),
        (
            60,
            {"validation": 31},
            "was asked for 60 labelled and 31 validation samples of 90; use at most 90 together.",
        ),
        (
            10,
            {},
            "was asked for 10 labelled samples, the same number of each of 3 classes; use a "
            "multiple of 3, or balanced=False.",
        ),
        (
            63,
            {},
            "was asked for 21 labelled samples of each of 3 classes, but class 1 has only 20 "
            "beside the 0 validation samples; use fewer labelled or validation samples, or "
            "balanced=False.",
        ),
    ],
)
def test_impossible_sizes_are_refused(labelled, options, message):
    with pytest.raises(ValueError, match=re.escape(f"semi_supervised_split {message}")):
        semi_supervised_split(data_of((30, 20, 40)), labelled, **options, generator=seeded())


def six_of_ten(noise: bool = False) -> SemiSupervisedSplit:
    data = data_of((60,) * 10, noise=noise)
    return semi_supervised_split(data, 100, validation=50, generator=seeded())


ANIMALS = [7, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("size", [None, 101, 160, 1])
@pytest.mark.parametrize("share", [0, 0.25, 0.3, 0.5, 0.75, 1])
def test_the_share_of_other_classes_is_met_to_the_sample(share, size):
    source = six_of_ten()
    split, mask = out_of_distribution_pool(source, ANIMALS, share, size=size, generator=seeded())
    pool = split.unlabelled
    assert mask.dtype == torch.bool
    assert mask.shape == (len(pool),)
    if size is not None:
        assert len(pool) == size
    assert abs(int(mask.sum()) - share * len(pool)) <= 0.5
    true = dict(zip(source.unlabelled.indices.tolist(), source.unlabelled.labels, strict=True))
    old = torch.stack([true[i] for i in pool.indices.tolist()])
    assert torch.equal(mask, ~torch.isin(old, torch.tensor(ANIMALS)))


def test_without_a_size_one_kind_is_used_up():
    source = six_of_ten()
    known = int(torch.isin(source.unlabelled.labels, torch.tensor(ANIMALS)).sum())
    unknown = len(source.unlabelled) - known
    for share in (0.1, 0.2, 0.3, 0.6, 0.7, 0.9):
        _, mask = out_of_distribution_pool(source, ANIMALS, share, generator=seeded())
        total, others = len(mask), int(mask.sum())
        assert total - others <= known
        assert others <= unknown
        # A pool of one more sample would need more of one kind than there are.
        assert (total + 1) * share > unknown or (total + 1) * (1 - share) > known
    assert len(out_of_distribution_pool(source, ANIMALS, 0, generator=seeded())[1]) == known
    assert len(out_of_distribution_pool(source, ANIMALS, 1, generator=seeded())[1]) == unknown


def test_floating_point_loses_no_sample():
    assert 3 / (1 - 0.7) < 10
    data = data_of((2, 7, 1))
    nothing = data.subset(torch.arange(0))
    split = SemiSupervisedSplit(nothing, data, nothing)
    _, mask = out_of_distribution_pool(split, [0, 2], 0.7, generator=seeded())
    assert (len(mask), int(mask.sum())) == (10, 7)


def test_classes_are_renumbered_in_the_order_given():
    source = six_of_ten()
    split, mask = out_of_distribution_pool(source, ANIMALS, 0.5, generator=seeded())
    for before, after in zip(source, split, strict=True):
        assert after.num_classes == 6
        old = dict(zip(before.indices.tolist(), before.labels.tolist(), strict=True))
        kept = after.subset(~mask) if after is split.unlabelled else after
        expected = [ANIMALS.index(old[i]) for i in kept.indices.tolist()]
        assert kept.labels.tolist() == expected
        assert kept.clean_labels.tolist() == expected
        assert torch.equal(after.inputs, (after.indices - 100).float()[:, None])
    assert split.labelled.class_counts().tolist() == [10] * 6
    assert not split.unlabelled.labels[mask].any()
    assert not split.unlabelled.clean_labels[mask].any()


def test_labelled_and_validation_samples_of_the_classes_all_stay():
    source = six_of_ten()
    split, _ = out_of_distribution_pool(source, ANIMALS, 0.5, generator=seeded())
    for before, after in ((source.labelled, split.labelled), (source.validation, split.validation)):
        chosen = torch.isin(before.labels, torch.tensor(ANIMALS))
        assert torch.equal(after.indices, before.indices[chosen])


def test_the_parts_stay_disjoint_and_in_order():
    split, _ = out_of_distribution_pool(six_of_ten(), ANIMALS, 0.4, generator=seeded())
    everything = torch.cat([part.indices for part in split])
    assert len(everything.unique()) == len(everything)
    assert all(torch.equal(part.indices, part.indices.sort().values) for part in split)


def test_the_generator_alone_decides_the_pool():
    before = torch.random.get_rng_state()
    source = six_of_ten()
    (first, mask), (again, same_mask), (other, _) = (
        out_of_distribution_pool(source, ANIMALS, 0.5, size=40, generator=seeded(s))
        for s in (1, 1, 2)
    )
    assert same(first, again)
    assert torch.equal(mask, same_mask)
    assert not torch.equal(first.unlabelled.indices, other.unlabelled.indices)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_larger_share_adds_to_the_samples_of_other_classes():
    source = six_of_ten()
    few, many = (
        out_of_distribution_pool(source, ANIMALS, share, size=100, generator=seeded())
        for share in (0.2, 0.6)
    )
    low, high = (set(s.unlabelled.indices[m].tolist()) for s, m in (few, many))
    assert low < high
    low, high = (set(s.unlabelled.indices[~m].tolist()) for s, m in (few, many))
    assert high < low


@pytest.mark.parametrize(
    ("classes", "share", "size", "message"),
    [
        ([], 0.5, None, "classes=[] was given; name at least one class, and each only once."),
        ([1, 2, 1], 0.5, None, "classes=[1, 2, 1] was given; name at least one class, and each"),
        ([1, 3], 0.5, None, "classes=[1, 3] was given for data of 3 classes; use 0 to 2."),
        ([-1, 1], 0.5, None, "classes=[-1, 1] was given for data of 3 classes; use 0 to 2."),
        ([0, 1], 1.1, None, "share=1.1 of the unlabelled pool was asked for; use 0 to 1."),
        ([0, 1], float("nan"), None, "share=nan of the unlabelled pool was asked for; use 0 to 1."),
        (
            [0, 1, 2],
            0.5,
            None,
            "A share of 0.5 from other classes was asked of an unlabelled pool, but the pool has "
            "24 samples of classes [0, 1, 2] and 0 of others; use another share or other classes.",
        ),
        (
            [0, 1],
            0.5,
            17,
            "A pool of size=17 with a share of 0.5 from other classes was asked for, but the pool "
            "has 16 samples of classes [0, 1] and 8 of others; use a size from 1 to 16.",
        ),
        ([0, 1], 0.5, 0, "A pool of size=0 with a share of 0.5 from other classes was asked for"),
    ],
)
def test_impossible_pools_are_refused(classes, share, size, message):
    split = semi_supervised_split(data_of((10, 10, 10)), 6, generator=seeded())
    with pytest.raises(ValueError, match=re.escape(message)):
        out_of_distribution_pool(split, classes, share, size=size, generator=seeded())


def test_noise_that_leads_out_of_the_classes_is_refused():
    split = six_of_ten(noise=True)
    labelled = split.labelled
    kept = torch.isin(labelled.clean_labels, torch.tensor(ANIMALS))
    strayed = int((kept & ~torch.isin(labelled.labels, torch.tensor(ANIMALS))).sum())
    assert strayed
    message = (
        f"out_of_distribution_pool was given {strayed} samples of the chosen classes whose noisy "
        "labels name other classes; choose the classes first and add the noise after."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        out_of_distribution_pool(split, ANIMALS, 0.5, generator=seeded())


def test_noise_within_the_classes_is_kept():
    data = data_of((20, 20, 20))
    swapped = torch.where(data.indices % 4 == 0, 1 - data.clean_labels, data.clean_labels)
    data = data.with_labels(torch.where(data.clean_labels == 2, data.clean_labels, swapped))
    split = semi_supervised_split(data, 12, validation=6, generator=seeded())
    new, mask = out_of_distribution_pool(split, [1, 0], 0.5, generator=seeded())
    for part, known in ((new.labelled, slice(None)), (new.unlabelled, ~mask)):
        positions = part.indices[known] - 100
        assert torch.equal(part.labels[known], 1 - data.labels[positions])
        assert torch.equal(part.clean_labels[known], 1 - data.clean_labels[positions])
        assert part.wrong_labels.any()
