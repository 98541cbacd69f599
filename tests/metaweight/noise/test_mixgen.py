"""MixGen by hand, and what it must leave alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metaweight.problems import ConfigurationError, DataError

from metaweight.noise import SpecialTokens, mixgen

CLS, SEP, PAD = 101, 102, 0
BERT = SpecialTokens(start=CLS, end=SEP, pad=PAD)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(size: int = 8, array: Any = torch.tensor) -> list[dict[str, Any]]:
    """Sample ``i`` has the frame ``i`` and the text ``[i]``."""
    return [{"frames": [array([float(i)])], "input_ids": [i], "label": i} for i in range(size)]


def rows(batch: list[dict[str, Any]]) -> list[tuple[float, list[int]]]:
    return [(float(row["frames"][0][0]), row["input_ids"]) for row in batch]


@pytest.mark.parametrize("array", [torch.tensor, np.array])
def test_partners_are_mixed_as_they_were(array):
    batch = plain(array=array)
    # A quarter of eight samples are two, who can only be each other's partners.
    mixed = mixgen(batch)
    assert rows(mixed) == [(0.5, [0, 1]), (0.5, [1, 0]), *rows(plain()[2:])]
    assert rows(batch) == rows(plain())
    assert type(mixed[0]["frames"][0]) is type(batch[0]["frames"][0])


def test_the_published_partner_is_so_many_samples_later():
    mixed = mixgen(plain(), partner="next")
    assert rows(mixed) == [(1.0, [0, 2]), (2.0, [1, 3]), *rows(plain()[2:])]


def test_lam_is_the_share_of_the_own_frames():
    mixed = mixgen(plain(), 0.75, partner="next")
    assert rows(mixed)[:2] == [(0.5, [0, 2]), (1.5, [1, 3])]


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 12),
    ratio=st.floats(0.01, 1),
    lam=st.floats(0, 1),
)
def test_nobody_is_their_own_partner_and_nothing_is_written(seed, size, ratio, lam):
    number = int(round(size * ratio, 9))
    batch = plain(size)
    before = copy.deepcopy(batch)
    if number < 2:
        with pytest.raises(DataError):
            mixgen(batch, lam, ratio, generator=generator(seed))
        return
    mixed = mixgen(batch, lam, ratio, generator=generator(seed))
    assert batch == before
    pairs = [row["input_ids"] for row in mixed[:number]]
    assert [own for own, _ in pairs] == list(range(number))
    assert sorted(other for _, other in pairs) == list(range(number))
    assert all(own != other for own, other in pairs)
    for (own, other), row in zip(pairs, mixed[:number], strict=True):
        assert row["frames"][0].item() == pytest.approx(lam * own + (1 - lam) * other, rel=1e-6)
    assert rows(mixed[number:]) == rows(before[number:])
    assert rows(mixgen(batch, lam, ratio, generator=generator(seed))) == rows(mixed)


def test_all_partners_of_a_cycle_occur():
    seen = {
        tuple(row["input_ids"][1] for row in mixgen(plain(3), ratio=1.0, generator=generator(s)))
        for s in range(20)
    }
    assert seen == {(1, 2, 0), (2, 0, 1)}


def test_the_result_shares_nothing_that_can_be_written():
    for array in (torch.tensor, np.array):
        batch = plain(array=array)
        for row in mixgen(batch):
            row["frames"][0][...] = -1.0
            row["frames"].append(None)
            row["input_ids"].append(-1)
        assert rows(batch) == rows(plain())
        assert all(len(row["frames"]) == 1 and len(row["input_ids"]) == 1 for row in batch)


def texts(*ids: list[int], length: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Rows of tokens, padded to ``length``, with masks and segments where asked for."""
    batch = []
    for own in ids:
        missing = [PAD] * (length - len(own))
        row: dict[str, Any] = {"frames": [], "input_ids": own + missing}
        if more.get("mask"):
            row["attention_mask"] = [1] * len(own) + [0] * len(missing)
        if more.get("segments"):
            row["token_type_ids"] = [i % 2 for i in range(len(own))] + [0] * len(missing)
        batch.append(row)
    return batch


def joined(batch: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return mixgen(batch, ratio=1.0, tokens=BERT, **settings)[0]


FIRST, SECOND = [CLS, 7, 8, SEP], [CLS, 9, SEP]


def test_special_tokens_inside_are_taken_out():
    assert joined(texts(FIRST, SECOND))["input_ids"] == [CLS, 7, 8, 9, SEP]
    without = mixgen(texts(FIRST, SECOND), ratio=1.0)[0]
    assert without["input_ids"] == FIRST + SECOND


def test_masks_and_segments_are_rebuilt():
    row = joined(texts(FIRST, SECOND, mask=True, segments=True))
    assert row["input_ids"] == [CLS, 7, 8, 9, SEP]
    assert row["attention_mask"] == [1] * 5
    # Each token keeps the segment it had.
    assert row["token_type_ids"] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("mask", [False, True])
def test_padding_goes_to_the_end_again(mask):
    row = joined(texts(FIRST, SECOND, length=7, mask=mask))
    assert row["input_ids"] == [CLS, 7, 8, 9, SEP, PAD, PAD]
    assert row.get("attention_mask") == ([1] * 5 + [0] * 2 if mask else None)
    short = joined(texts(FIRST, SECOND, length=4, mask=mask), max_length=4)
    assert short["input_ids"] == [CLS, 7, 8, SEP]
    assert short.get("attention_mask") == ([1] * 4 if mask else None)


def test_padding_on_the_left_stays_there():
    batch = texts(FIRST, SECOND, length=7, mask=True, segments=True)
    for row in batch:
        number = row["attention_mask"].count(0)
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            row[key] = row[key][-number:] + row[key][:-number]
    row = mixgen(batch, ratio=1.0, tokens=SpecialTokens(CLS, SEP))[0]
    assert row["input_ids"] == [PAD, PAD, CLS, 7, 8, 9, SEP]
    assert row["attention_mask"] == [0, 0, 1, 1, 1, 1, 1]
    assert row["token_type_ids"] == [0, 0, 0, 1, 0, 1, 0]


def test_long_texts_are_cut_and_end_as_they_did():
    assert joined(texts(FIRST, SECOND), max_length=4)["input_ids"] == [CLS, 7, 8, SEP]
    assert joined(texts([7, 8], [9, 10]), max_length=3)["input_ids"] == [7, 8, 9]
    row = joined(texts(FIRST, SECOND, mask=True), max_length=3)
    assert (row["input_ids"], row["attention_mask"]) == ([CLS, 7, SEP], [1, 1, 1])


def test_a_partner_without_tokens_adds_nothing():
    assert joined(texts(FIRST, []))["input_ids"] == FIRST
    assert joined(texts([], FIRST))["input_ids"] == FIRST[1:]


def test_labels():
    batch = plain(8)
    assert [row["label"] for row in mixgen(batch)] == list(range(8))
    union = mixgen(batch, 0.75, label_mode="union", num_classes=8)
    mix = mixgen(batch, 0.75, label_mode="mix", num_classes=8)
    eye = torch.eye(8)
    assert torch.equal(union[0]["label"], eye[0] + eye[1])
    assert torch.equal(mix[0]["label"], 0.75 * eye[0] + 0.25 * eye[1])
    assert torch.equal(mix[1]["label"], 0.75 * eye[1] + 0.25 * eye[0])
    for rows_ in (union, mix):
        assert all(torch.equal(rows_[i]["label"], eye[i]) for i in range(2, 8))
    assert [row["label"] for row in batch] == list(range(8))
    again = mixgen(mix, label_mode="union", num_classes=8)
    assert torch.equal(again[0]["label"], torch.tensor([0.75, 0.75, 0, 0, 0, 0, 0, 0]))
    assert torch.equal(mix[0]["label"], 0.75 * eye[0] + 0.25 * eye[1])


@pytest.mark.parametrize("mode", ["union", "mix"])
def test_vectors_of_labels_are_not_shared(mode):
    given = list(torch.eye(4))
    batch = [{"frames": [], "input_ids": [], "label": label} for label in given]
    for row in mixgen(batch, ratio=0.5, label_mode=mode, num_classes=4):
        row["label"][...] = -1
    assert torch.equal(torch.stack(given), torch.eye(4))


def test_other_entries_are_passed_on_and_labels_may_be_missing():
    batch = [{"frames": [], "input_ids": [i], "key": f"k{i}"} for i in range(4)]
    assert [row["key"] for row in mixgen(batch, ratio=0.5)] == ["k0", "k1", "k2", "k3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": 1.5}, r"lam=1.5, ratio=0.25\) is out of range; give lam in \[0, 1\]"),
        ({"lam": -0.5}, "lam=-0.5"),
        ({"ratio": 0.0}, r"ratio=0.0\) is out of range"),
        ({"ratio": 1.1}, r"ratio=1.1\) is out of range"),
        ({"partner": "self"}, "partner='self'.*derangement, next; choose"),
        ({"label_mode": "none"}, "label_mode='none'.*keep, union, mix; choose"),
        ({"label_mode": "mix"}, "label_mode='mix', num_classes=None.* give num_classes"),
        ({"max_length": 0}, "max_length=0.* at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        mixgen(plain(), **arguments)


@pytest.mark.parametrize(
    ("batch", "arguments", "message"),
    [
        (plain(3), {}, r"takes 0 of 3 samples, too few .* larger batch"),
        (plain(7), {}, r"takes 1 of 7 samples"),
        ([], {}, "takes 0 of 0 samples"),
        (plain(3), {"partner": "next"}, "takes 0 of 3 samples and as many partners"),
        (plain(8), {"partner": "next", "ratio": 0.75}, "takes 6 of 8 samples and as many"),
        ([{"frames": []}] * 2, {}, "Sample 0 given to MixGen has no 'input_ids', only 'frames'"),
        ([{"input_ids": [], "frames": []}] * 2, {"label_mode": "mix", "num_classes": 2}, "'label'"),
        (
            [{"frames": [np.zeros(2, np.uint8)], "input_ids": []}] * 2,
            {},
            "frames of type uint8; give floating-point",
        ),
        ([{"frames": [3.0], "input_ids": []}] * 2, {}, "frames of type float; give"),
        (
            [{"frames": [torch.zeros(2)] * n, "input_ids": []} for n in (1, 2)],
            {"ratio": 1.0},
            r"blend 1 frames of shapes \[\(2,\)\] with 2 of|blend 2 frames",
        ),
        (
            [{"frames": [torch.zeros(n)], "input_ids": []} for n in (2, 3)],
            {"ratio": 1.0},
            r"shapes \[\(2,\)\] with 1 of shapes \[\(3,\)\]; give all samples the same",
        ),
        (
            [{"frames": [], "input_ids": [1], **m} for m in ({}, {"attention_mask": [1]})],
            {"ratio": 1.0},
            "one has 'attention_mask' and one has not",
        ),
        (
            [{"frames": [], "input_ids": [1, 2], "attention_mask": [1]}] * 2,
            {"ratio": 1.0},
            "1 entries of 'attention_mask' for 2 input_ids",
        ),
        (
            [{"frames": [], "input_ids": [], "label": 5}] * 2,
            {"ratio": 1.0, "label_mode": "mix", "num_classes": 4},
            r"span 5 to 5 for num_classes=4; give classes in \[0, 4\).* 5 at index 0",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, arguments, message):
    with pytest.raises(DataError, match=message):
        mixgen(batch, **arguments)
