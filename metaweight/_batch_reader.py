"""The one way in which ready-made problems read batches and call networks with them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import shown

from ._batch import Batch, Part, shown_batch, split_batch
from ._network_call import call_network, logits_of, one_tensor


@dataclass(frozen=True)
class BatchReader:
    """Where inputs and labels are in a batch, and logits in what a network returns.

    Args:
        who: Who reads, for an error.
        inputs: Key or place in a batch, or a function of it; guessed when left out.
        labels: The same of the labels.
        logits: Key, attribute or place in what a network returns, or a function of it. When left
            out, its ``logits`` where it has such an attribute or key, else all of it.

    Raises:
        ConfigurationError: For something else.
    """

    who: str
    inputs: Part = None
    labels: Part = None
    logits: Part = None

    def __post_init__(self) -> None:
        for name in ("inputs", "labels", "logits"):
            given = getattr(self, name)
            known = given is None or (callable(given) and not isinstance(given, type))
            if not known and (isinstance(given, bool) or not isinstance(given, (str, int))):
                whole = "what the network returns" if name == "logits" else "a batch"
                raise ConfigurationError(
                    f"{self.who} received {name}={shown(given)}; give a key or place in {whole}, "
                    "or a function of it."
                )

    def read(self, batch: Any, *, labelled: bool = True, where: str = "") -> Batch:
        """Return inputs, labels and positions of a batch.

        Args:
            batch: The batch.
            labelled: Whether it must have labels.
            where: Where it comes from, for an error.

        Raises:
            DataError: For a batch of another kind, saying what it holds and what was looked for.
        """
        return split_batch(self.who + where, batch, self.inputs, self.labels, labelled=labelled)

    def read_tensor(self, batch: Any, *, labelled: bool = True, where: str = "") -> Batch:
        """Return what :meth:`read` does, for tools whose inputs have to be one tensor."""
        parts = self.read(batch, labelled=labelled, where=where)
        return parts._replace(inputs=one_tensor(self.who + where, parts.inputs))

    def outputs(self, network: Any, inputs: Any, *, tensor: bool = False) -> Any:
        """Call a network with the inputs of a batch and return its logits, or all it returns.

        Args:
            network: A module or a problem.
            inputs: As read.
            tensor: Whether logits have to be one tensor.

        Raises:
            DataError: When they are not.
        """
        outputs = call_network(self.who, network, inputs)
        return self.find_tensor(outputs) if tensor else self.find_logits(outputs)

    def predict(self, network: Any, inputs: Any) -> Tensor:
        """Return what :meth:`outputs` does, for tools whose logits have to be one tensor."""
        return self.find_tensor(call_network(self.who, network, inputs))

    def find_tensor(self, outputs: Any) -> Tensor:
        """Return the logits among the outputs of a network, which are a tensor.

        Raises:
            DataError: For others, saying what they are.
        """
        logits = self.find_logits(outputs)
        if not isinstance(logits, Tensor):
            raise self._without_logits(logits)
        return logits

    def find_logits(self, outputs: Any) -> Any:
        """Return the logits among the outputs of a network, or all where there are no such.

        Raises:
            DataError: When there are none where they were said to be.
        """
        if self.logits is None:
            return logits_of(outputs)
        if callable(self.logits):
            return self.logits(outputs)
        if isinstance(self.logits, str) and hasattr(outputs, self.logits):
            return getattr(outputs, self.logits)
        if isinstance(outputs, (Mapping, Sequence)):
            with contextlib.suppress(LookupError, TypeError):
                return outputs[self.logits]  # type: ignore[index]
        raise self._without_logits(outputs)

    def _without_logits(self, outputs: Any) -> DataError:
        return DataError(
            f"{self.who} has a network that returned {shown_batch(outputs)}, in which logits were "
            f"looked for with logits={shown(self.logits)}; give one that returns a tensor of "
            "logits or has it as its logits, or say with logits=... where it is: a key, attribute "
            "or place in what it returns, or a function of it."
        )
