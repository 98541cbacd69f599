"""Batches of tokenised sequences of which only some have labels."""

from __future__ import annotations

from typing import Any

from metaweight.lm import TextCollate
from metaweight.lm.text_collate import padded


class Pads:
    """The part of a tokenizer that pads, on the left."""

    padding_side = "left"

    def pad(self, samples: list[dict[str, Any]], return_tensors: str) -> dict[str, Any]:
        return dict(padded(samples, "left"))


def test_samples_without_labels_have_their_inputs_for_labels() -> None:
    """As where sequences are padded without a tokenizer; the others' stay with their rows."""
    samples = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
    batch = TextCollate(Pads())(samples)
    assert batch["labels"].tolist() == [[1, 2, 3], [-100, -100, 5]]
    assert batch["labels"].tolist() == padded(samples, "left")["labels"].tolist()
