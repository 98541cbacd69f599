"""Losses of the tokens that a language model predicts, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight._batch import Part, part_of, shown_batch
from metaweight._batch_reader import BatchReader
from metaweight._labels import UNLABELLED, on_host, read_labels
from metaweight._network_call import call_network, named_arguments
from metaweight.problems import DataError, LossError

INPUTS = "input_ids"
MASK = "attention_mask"
LABELS = "labels"
PROPOSAL = "proposal"
REFERENCE = "reference_loss"
_IGNORED = UNLABELLED[1]


class TokenLosses(NamedTuple):
    """What a pass over a batch of sequences computes."""

    losses: Tensor
    """The loss of the token predicted at each position, (B, T); 0 where it does not count."""

    counted: Tensor
    """Whether it counts, (B, T)."""

    hidden: Tensor | None
    """The mean hidden state over positions that count, (B, D), if asked for."""

    def per_sequence(self) -> Tensor:
        """Return the mean loss of the tokens of each sequence, (B,); 0 where none counts."""
        return self.losses.sum(1) / self.counted.sum(1).clamp_min(1)

    def mean(self) -> Tensor:
        """Return the mean loss of all tokens that count."""
        return self.losses.sum() / self.counted.sum().clamp_min(1)

    def checked(self, who: str) -> TokenLosses:
        """Return these; where it is seen without waiting for a device, refuse that none counts.

        Raises:
            DataError: Then.
        """
        if on_host(self.counted) and not self.counted.any():
            raise DataError(
                f"{who} received a batch in which no token counts, as all labels are {_IGNORED} or "
                "padding; leave such sequences out."
            )
        return self


@dataclass(frozen=True)
class TokenReader:
    """Calls a language model with a batch, and computes the losses of its tokens.

    Args:
        who: Who reads, for an error.
        shift: Whether position t predicts label t + 1, as in a causal model, or label t.
        hidden: Where hidden states (B, T, D) are in what the network returns: a key, attribute or
            place, or a function of it. When left out, the last of its ``hidden_states``.
        logits: The same of the logits (B, T, V). When left out, its ``logits``, or all of it.
        others: Names of parts of a batch that are no inputs, as labels, proposals and losses of a
            reference are not.
    """

    who: str
    shift: bool = True
    hidden: Part = None
    logits: Part = None
    others: tuple[str, ...] = ("source",)

    def read(self, network: Any, batch: Any, *, pooled: bool = False) -> TokenLosses:
        """Return the losses of a batch, with mean hidden states if asked for.

        Raises:
            DataError: For a batch that is no mapping with ``input_ids`` or ``labels``.
            LossError: For logits of another shape, and labels that are none.
        """
        if not isinstance(batch, Mapping) or not {INPUTS, LABELS} & {*batch}:
            raise DataError(
                f"{self.who} received {shown_batch(batch)}; give mappings with {INPUTS!r}, and "
                f"where they differ {LABELS!r}, as a tokenizer's collator does."
            )
        outputs = self._called(network, batch, pooled)
        logits = BatchReader(self.who, logits=self.logits).find_tensor(outputs)
        labels = _labels_of(batch, self.shift)
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise LossError(
                f"{self.who} has a network with logits of shape {tuple(logits.shape)} for labels "
                f"of shape {tuple(labels.shape)}; give one of (B, T, V) for (B, T), and for one "
                "label per sequence use metaweight.weighting.WeightedClassifier."
            )
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        read = read_labels(labels, logits.shape[2], shape=labels.shape)
        losses = F.cross_entropy(
            logits.flatten(0, 1), read.marked(_IGNORED).flatten(), reduction="none"
        )
        hidden = _mean_hidden(self._hidden_of(outputs), read.kept) if pooled else None
        return TokenLosses(losses.view(labels.shape), read.kept, hidden)

    def _called(self, network: Any, batch: Mapping[str, Any], pooled: bool) -> Any:
        others = (LABELS, PROPOSAL, REFERENCE, *self.others)
        inputs = {k: v for k, v in batch.items() if k not in others and isinstance(v, Tensor)}
        names, takes_all = named_arguments(network)
        if not takes_all and not inputs.keys() & set(names):
            return call_network(self.who, network, {INPUTS: batch[INPUTS]})
        asked: dict[str, Any] = {"use_cache": False}
        if pooled and self.hidden is None:
            asked["output_hidden_states"] = True
        return call_network(self.who, network, inputs | asked)

    def _hidden_of(self, outputs: Any) -> Tensor:
        if self.hidden is not None:
            found: Any = _part_of_outputs(self.who, outputs, self.hidden)
        else:
            names = ("decoder_hidden_states", "hidden_states")
            found = next((h for n in names if (h := getattr(outputs, n, None)) is not None), None)
        found = found[-1] if isinstance(found, (tuple, list)) else found
        if not isinstance(found, Tensor) or found.ndim != 3:
            raise DataError(
                f"{self.who} has a network that returned {shown_batch(outputs)}, in which hidden "
                "states (B, T, D) were looked for; give one with hidden_states, or say with "
                "hidden=... where they are: a key, attribute or place, or a function of it."
            )
        return found.float() if found.dtype.itemsize < 4 else found


def counted_tokens(batch: Mapping[str, Any], shift: bool = True) -> Tensor:
    """Return which positions of a batch predict a token that counts, (B, T)."""
    labels = _labels_of(batch, shift)
    return (labels != UNLABELLED[0]) & (labels != UNLABELLED[1])


def _labels_of(batch: Mapping[str, Any], shift: bool) -> Tensor:
    """Return the label that each position predicts, (B, T), -100 where none counts."""
    labels: Tensor = batch.get(LABELS, batch.get(INPUTS))
    if not shift:
        return labels
    mask = batch.get(MASK)
    if not isinstance(mask, Tensor) or mask.shape != labels.shape:
        mask = torch.ones_like(labels)
    # Of padding on the left nothing is known that a first token could be predicted from.
    padding = (mask == 0) | (F.pad(mask[:, 1:], (0, 1)) == 0)
    return F.pad(labels[:, 1:], (0, 1), value=_IGNORED).masked_fill(padding, _IGNORED)


def _mean_hidden(hidden: Tensor, counted: Tensor) -> Tensor:
    kept = torch.where(counted.unsqueeze(2), hidden, 0)
    return kept.sum(1) / counted.sum(1, keepdim=True).clamp_min(1)


def _part_of_outputs(who: str, outputs: Any, part: Part) -> Any:
    if isinstance(part, str) and hasattr(outputs, part):
        return getattr(outputs, part)
    return part_of(who, outputs, part, "hidden")
