"""A user's loss, called in the form that a tool needs: one number per sample, or their mean."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import shown

from ._labels import UNLABELLED, Labels, on_host, read_targets

OF_NUMBERS = (
    *(nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss),
    *(nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss),
)
"""Losses of torch whose targets are floating numbers; whole ones are taken for such."""
OF_NUMBERS_BY_FUNCTION = (
    *(F.binary_cross_entropy, F.binary_cross_entropy_with_logits),
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss),
    *(F.multilabel_soft_margin_loss, F.soft_margin_loss),
)


class SampleLoss:
    """A loss ``loss(outputs, labels)`` that leaves out samples without a label.

    Args:
        who: Who was given it, for an error.
        loss: A function or module. One number per sample comes of ``reduction="none"``, as an
            argument or an attribute of a module, or of the loss itself.

    Raises:
        ConfigurationError: For something that is not called with outputs and labels.
    """

    def __init__(self, who: str, loss: Any) -> None:
        if not callable(loss) or isinstance(loss, type):
            made = f", such as {loss.__name__}()" if isinstance(loss, type) else ""
            raise ConfigurationError(
                f"{who} received loss={shown(loss)}; give a function or a module{made}."
            )
        self._who = who
        self._loss: Callable[..., Any] = loss
        self._each = _unreduced(loss)
        self._ignored = _ignored_by(loss)
        self._called = loss
        while isinstance(self._called, partial):
            self._called = self._called.func
        by_function = self._called in OF_NUMBERS_BY_FUNCTION
        self._of_numbers = isinstance(self._called, OF_NUMBERS) or by_function

    def each(self, outputs: Any, given: Any) -> Tensor:
        """Return the loss of each sample; 0, without a gradient, for those without a label.

        Raises:
            LossError: When the loss gives anything else than one number per sample.
        """
        targets = self.read(given, outputs)
        if not isinstance(targets, Labels):
            return self._checked(self._each(outputs, targets), outputs)
        losses = self._checked(self._each(outputs, targets.classes), outputs)
        return (
            losses if targets.whole else torch.where(targets.kept.reshape(losses.shape), losses, 0)
        )

    def mean(self, outputs: Any, given: Any) -> Tensor:
        """Return the loss of a batch, a mean over the samples with a label.

        A loss with an ``ignore_index`` reduces as it does by itself.

        Raises:
            LossError: When a loss that gives one number for a batch cannot leave out a sample.
        """
        targets = self.read(given, outputs)
        if not isinstance(targets, Labels):
            return self._mean(self._loss(outputs, targets), outputs, targets)
        if targets.whole:
            return self._mean(self._loss(outputs, targets.classes), outputs, targets.classes)
        kept = targets.kept
        if self._ignored is not None:
            losses = self._loss(outputs, targets.marked(self._ignored))
        else:
            losses = self._each(outputs, targets.classes)
        if losses.ndim and losses.numel() == kept.numel():
            return mean_of_kept(losses.reshape(kept.shape), kept)
        if self._ignored is not None:
            # Torch divides by their number, also where that is 0.
            return torch.where(kept.any(), losses, 0)
        whole = kept.all()
        if on_host(whole) and not whole:
            place = int(kept.flatten().logical_not().nonzero()[0])
            raise LossError(
                f"{self._who} received a batch without a label at index {place}, and a loss that "
                "gives one number for all samples, of which none can be left out; give a loss with "
                "reduction='none', with an ignore_index, or of one number per sample."
            )
        # On a device nothing waits for the answer: the loss of such a batch is not a number.
        return torch.where(whole, losses, torch.nan)

    def read(self, given: Any, outputs: Any) -> Any:
        """Return the labels for these outputs: as classes where they are, else as they are, or as
        floating numbers for losses of torch that take nothing else."""
        found: Any = read_targets(
            given, outputs, of_classes=self._ignored is not None, ignore_index=self.ignore_index
        )
        if not self._of_numbers or not isinstance(found, Tensor):
            return found
        self._require_alike(outputs, found)
        whole = not (found.is_floating_point() or found.is_complex())
        return found.to(outputs.dtype) if whole else found

    @property
    def ignore_index(self) -> int:
        """A label that the loss leaves out by itself; -1, as always, where there is none."""
        return UNLABELLED[0] if self._ignored is None else self._ignored

    @property
    def of_logits(self) -> bool:
        """Whether the loss is one of torch's that take logits and nothing else."""
        return self._called is F.cross_entropy or isinstance(self._called, nn.CrossEntropyLoss)

    def _require_alike(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse outputs and targets that are compared each with each, such as (B, 1) and (B,)."""
        if outputs.shape == targets.shape:
            return
        try:
            both = torch.broadcast_shapes(outputs.shape, targets.shape)  # type: ignore[no-untyped-call]
        except RuntimeError:
            # The loss says so itself.
            return
        if both.numel() > max(outputs.numel(), targets.numel()):
            raise LossError(
                f"{self._who} received outputs of shape {tuple(outputs.shape)} for labels of shape "
                f"{tuple(targets.shape)}, of which the loss would compare each with each; give "
                "both one shape, such as outputs.squeeze(1) from the network."
            )

    def _mean(self, losses: Any, outputs: Any, targets: Any) -> Tensor:
        """Return the mean of what a loss returned, if it is not one number already.

        Raises:
            LossError: For a number of losses that is none of samples, tokens or outputs.
        """
        if not isinstance(losses, Tensor) or not losses.ndim:
            one: Tensor = losses
            return one
        parts = [part for part in (outputs, targets) if isinstance(part, Tensor) and part.ndim]
        known = {part.numel() for part in parts} | {len(part) for part in parts}
        return losses.mean() if losses.numel() in known else self._checked(losses, outputs).mean()

    def _checked(self, losses: Any, outputs: Any) -> Tensor:
        size = len(outputs) if isinstance(outputs, Tensor) and outputs.ndim else None
        tensor = isinstance(losses, Tensor)
        if not tensor or not losses.ndim or (size is not None and losses.numel() != size):
            form = f"shape {tuple(losses.shape)}" if tensor else type(losses).__name__
            raise LossError(
                f"The loss given to {self._who} returned {form} for {size or 'all'} samples; give "
                "one that returns one number per sample, for instance with reduction='none'."
            )
        return losses  # type: ignore[no-any-return]


def mean_of_kept(losses: Tensor, kept: Tensor) -> Tensor:
    """Return the mean over the samples that count; 0, with a graph, when none does."""
    return torch.where(kept, losses, 0).sum() / kept.sum().clamp_min(1)


def _unreduced(loss: Any) -> Callable[..., Any]:
    """Return the loss in the form that gives one number per sample, where it has such a form."""
    arguments = _parameters(loss)
    own = isinstance(loss, nn.Module) and isinstance(getattr(loss, "reduction", None), str)
    others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in arguments.values())
    if "reduction" in arguments or (others and not own):
        return partial(loss, reduction="none")
    if own:
        # It shares the module's weights, and leaves its setting alone.
        loss = copy.copy(loss)
        loss.reduction = "none"
    each: Callable[..., Any] = loss
    return each


def _ignored_by(loss: Any) -> int | None:
    """Return the label that the loss itself leaves out, if there is one."""
    found = getattr(loss, "ignore_index", None)
    if found is None and "ignore_index" in _parameters(loss):
        found = _parameters(loss)["ignore_index"].default
    if not isinstance(found, Integral) or isinstance(found, bool):
        return None
    return int(found)


def _parameters(loss: Any) -> dict[str, inspect.Parameter]:
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        return dict(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return {}
