"""Batches of tokenised sequences, by a tokenizer, a collator, or padding alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from metaweight._batch import shown_batch
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_number, shown

from .sources import Sources
from .token_losses import INPUTS, LABELS, MASK, REFERENCE

_IGNORED = -100


class TextCollate:
    """Makes a batch of samples: mappings of tokenised text, with a source where there is one.

    Texts and other strings are left out, sources become numbers, and ``reference_loss``, where
    samples have it, a tensor (B,).

    Args:
        collate: A tokenizer, whose ``pad`` is used; a collator, as of ``transformers``; or nothing:
            then sequences are padded on the right, and ``attention_mask`` says where.
        sources: Numbers of the sources; without it samples have none.
        source: Name of the source in a sample.

    Raises:
        ConfigurationError: For a tokenizer without a padding token.
        DataError: When called, for samples of another kind, or without a source, where some have
            a ``reference_loss`` and others not, and where it is no finite number.
    """

    def __init__(
        self,
        collate: Any = None,
        *,
        sources: Sources | None = None,
        source: str = "source",
    ) -> None:
        pads = callable(getattr(collate, "pad", None))
        if collate is not None and not pads and not callable(collate):
            raise ConfigurationError(
                f"TextCollate received {shown(collate)}; give a tokenizer or a collator."
            )
        tokenizer = collate if pads else getattr(collate, "tokenizer", None)
        if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:
            raise ConfigurationError(
                f"TextCollate received the tokenizer {type(tokenizer).__name__} without a padding "
                "token; set one first, such as tokenizer.pad_token = tokenizer.eos_token."
            )
        self._sources = sources
        self._source = source
        self._collate: Callable[[list[Any]], Any] = collate
        if collate is None:
            self._collate = padded
        elif pads:
            self._collate = _PadsWith(collate)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch of tensors by name."""
        for sample in samples:
            if not isinstance(sample, Mapping) or INPUTS not in sample:
                raise DataError(
                    f"A sample is {shown_batch(sample)}; give mappings with {INPUTS!r}, "
                    "as a tokenizer makes them."
                )
        own = (self._source, REFERENCE)
        kept = [
            {k: v for k, v in s.items() if k not in own and not isinstance(v, str)} for s in samples
        ]
        batch = dict(self._collate(kept))
        if self._sources is not None:
            batch[self._source] = self._sources.numbers(
                [source_of(sample, self._source) for sample in samples]
            )
        known = [reference_of(sample) for sample in samples if REFERENCE in sample]
        if known and len(known) < len(samples):
            raise DataError(
                f"{len(known)} of {len(samples)} samples of a batch have {REFERENCE!r}; give it to "
                "all or none, by metaweight.lm.reference_losses(model, dataset)."
            )
        if known:
            batch[REFERENCE] = torch.tensor(known)
        return batch


def source_of(sample: Mapping[str, Any], name: str) -> Any:
    """Return the source of a sample, a name or a number.

    Raises:
        DataError: For a sample without one.
    """
    if name not in sample:
        raise DataError(
            f"A sample is {shown_batch(sample)}, without {name!r}; give each sample its source, or "
            "source=... of the part that holds it."
        )
    found = sample[name]
    return found.item() if isinstance(found, Tensor) else found


def reference_of(sample: Mapping[str, Any]) -> float:
    """Return the loss of a reference of a sample.

    Raises:
        DataError: For a sample without one, or with one that is no finite number.
    """
    if REFERENCE not in sample:
        raise DataError(
            f"A sample is {shown_batch(sample)}, without {REFERENCE!r}; give it to all samples, by "
            "metaweight.lm.reference_losses(model, dataset), also past a transform of the dataset."
        )
    found = sample[REFERENCE]
    number = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    if not is_number(number):
        raise DataError(
            f"A sample has the {REFERENCE!r} {shown(found)}; give a finite number, in nats a "
            "token, as metaweight.lm.reference_losses(model, dataset) computes it."
        )
    return float(number)


def padded(samples: Sequence[Mapping[str, Any]], side: str = "right") -> dict[str, Tensor]:
    """Return sequences padded to the longest: inputs and others by 0, labels by -100.

    Where some have labels, those of the others are their inputs.

    Raises:
        DataError: For samples with different parts otherwise, and for parts that are no numbers.
    """
    rows = [{k: _tensor_of(k, v) for k, v in sample.items()} for sample in samples]
    for row in rows:
        row.setdefault(MASK, torch.ones_like(row[INPUTS]))
        if any(LABELS in other for other in rows):
            row.setdefault(LABELS, row[INPUTS])
    for row in rows:
        if row.keys() != rows[0].keys():
            raise DataError(
                f"Samples of a batch hold {shown(sorted(rows[0]))} and {shown(sorted(row))}; give "
                "all of them the same parts."
            )
    return {
        name: pad_sequence(
            [row[name] for row in rows],
            batch_first=True,
            padding_value=_IGNORED if name == LABELS else 0,
            padding_side=side,
        )
        if rows[0][name].ndim
        else torch.stack([row[name] for row in rows])
        for name in rows[0]
    }


def _tensor_of(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"A sample has {name!r}: {shown(value)}, which are no numbers; leave this column out, "
            "or give a collator that does."
        ) from None


class _PadsWith:
    """Pads with a tokenizer, and labels, which it does not know, on the same side."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        # As where sequences are padded without a tokenizer, inputs are labels where there are none.
        labelled = any(LABELS in sample for sample in samples)
        labels = [torch.as_tensor(s.pop(LABELS, s[INPUTS])) for s in samples] if labelled else []
        batch = dict(self._tokenizer.pad(samples, return_tensors="pt"))
        if labels:
            batch[LABELS] = pad_sequence(
                labels,
                batch_first=True,
                padding_value=_IGNORED,
                padding_side=getattr(self._tokenizer, "padding_side", "right"),
            )
        return batch
