"""Joining the token sequences of two samples into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, require_count

IDS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a tokenizer puts around a text; those left out do not occur.

    Args:
        start: Before the text, such as ``[CLS]``.
        end: After the text, such as ``[SEP]``.
        pad: Fills rows up to a common length. Not needed where rows have an attention mask.

    Raises:
        ConfigurationError: For a value that is not an id.
    """

    start: int | None = None
    end: int | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end", "pad"):
            if getattr(self, name) is not None:
                require_count("SpecialTokens", name, getattr(self, name), least=0)


@dataclass(frozen=True)
class _Text:
    """The tokens of one sample that are not padding, and the padding."""

    ids: list[int]
    segments: list[int]
    padding: list[int]
    padded_left: bool


def join_rows(
    own: Mapping[str, Any],
    other: Mapping[str, Any],
    tokens: SpecialTokens,
    max_length: int | None,
) -> dict[str, list[int]]:
    """Return ids, and mask and segments where ``own`` has them, of ``own`` followed by ``other``.

    Padding and the special tokens that would be inside the joined text are removed. A text longer
    than ``max_length`` is cut and keeps its last special token. A row that was padded is padded to
    its old length.
    """
    for key in (MASK, SEGMENTS):
        if (key in own) != (key in other):
            raise DataError(
                f"MixGen was to join two samples of which one has {key!r} and one has not; give it "
                "to all or none."
            )
    first, second = _read(own, tokens), _read(other, tokens)
    pairs = list(zip(first.ids, first.segments, strict=True))
    more = list(zip(second.ids, second.segments, strict=True))
    while pairs and more and pairs[-1][0] == tokens.end:
        pairs.pop()
    while more and more[0][0] == tokens.start:
        more.pop(0)
    joined = _cut(pairs + more, tokens.end, max_length)
    return _padded(joined, first, len(own[IDS]), own)


def token_lists(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """Copy a sample's tokens, mask and segments."""
    return {key: _integers(row[key]) for key in (IDS, MASK, SEGMENTS) if key in row}


def check_max_length(max_length: int | None) -> None:
    """Refuse a length that leaves no room for a token.

    Raises:
        ConfigurationError: When it is below 1.
    """
    if max_length is not None and not is_count(max_length, least=1):
        raise ConfigurationError(
            f"mixgen(max_length={max_length}) leaves no room for a token; give at least 1, or None."
        )


def _read(row: Mapping[str, Any], tokens: SpecialTokens) -> _Text:
    ids = _integers(row[IDS])
    kept = _integers(row[MASK]) if MASK in row else _not_padding(ids, tokens.pad)
    segments = _integers(row[SEGMENTS]) if SEGMENTS in row else [0] * len(ids)
    for key, values in ((MASK, kept), (SEGMENTS, segments)):
        if len(values) != len(ids):
            raise DataError(
                f"MixGen received {len(values)} entries of {key!r} for {len(ids)} input_ids; give "
                "one for each."
            )
    return _Text(
        [i for i, k in zip(ids, kept, strict=True) if k],
        [s for s, k in zip(segments, kept, strict=True) if k],
        [i for i, k in zip(ids, kept, strict=True) if not k],
        bool(kept) and not kept[0],
    )


def _not_padding(ids: Sequence[int], pad: int | None) -> list[int]:
    return [int(i != pad) for i in ids]


def _integers(values: Any) -> list[int]:
    return [int(v) for v in values]


def _cut(
    pairs: list[tuple[int, int]], end: int | None, max_length: int | None
) -> list[tuple[int, int]]:
    if max_length is None or len(pairs) <= max_length:
        return pairs
    closes = end is not None and pairs[-1][0] == end
    return [*pairs[: max_length - 1], pairs[-1]] if closes else pairs[:max_length]


def _padded(
    pairs: list[tuple[int, int]], first: _Text, length: int, own: Mapping[str, Any]
) -> dict[str, list[int]]:
    ids, segments, mask = [i for i, _ in pairs], [s for _, s in pairs], [1] * len(pairs)
    missing = length - len(ids) if first.padding else 0
    if missing > 0:
        fill, none = first.padding[:1] * missing, [0] * missing
        left = first.padded_left
        ids = fill + ids if left else ids + fill
        segments = none + segments if left else segments + none
        mask = none + mask if left else mask + none
    columns = {IDS: ids, MASK: mask, SEGMENTS: segments}
    return {key: values for key, values in columns.items() if key in own}
