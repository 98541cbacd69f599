"""Batches of ``transformers.Trainer`` and its losses, as weighted problems read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from metaweight._batch import Batch
from metaweight.weighting import WeightedClassifier


class MicroBatch(NamedTuple):
    """A micro-batch of the Trainer."""

    inputs: Any
    """What the collator made, on the device."""

    share: Any
    """A factor of its loss, or ``None`` for 1."""


class TrainerClassifier(WeightedClassifier):
    """A weighted classifier whose batches are micro-batches of the Trainer, or clean ones."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with own_forward(self.module):
            return self.module(*args, **kwargs)

    def sample_losses(self, batch: Any) -> Tensor:
        with own_forward(self.module):
            return super().sample_losses(batch)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        weights = super().sample_weights(losses, batch)
        return weights if batch.share is None else weights * batch.share

    def parts_of(self, batch: Any) -> Batch:
        return super().parts_of(batch.inputs)


@contextmanager
def own_forward(module: nn.Module) -> Iterator[None]:
    """Use the module's own forward inside, where accelerate has put one with autocast in its place.

    The precision is then the problem's: passes of a hypergradient are in full precision.
    """
    patched = vars(module).get("forward")
    if patched is None or "_original_forward" not in vars(module):
        yield
        return
    module.forward = module._original_forward  # type: ignore[assignment]
    try:
        yield
    finally:
        module.forward = patched


def per_sample(loss: Callable[..., Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return a ``compute_loss_func`` as a loss of outputs and labels."""

    def of_outputs(outputs: Any, labels: Any) -> Tensor:
        return loss(outputs, labels, num_items_in_batch=None)

    return of_outputs


def whole(outputs: Any) -> Any:
    return outputs
