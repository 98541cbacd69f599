"""What losses may read and write beside parameters: the buffers and some layers of networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from .buffers import BufferSlot, read_in_training
from .padding_rows import shared_tables
from .power_iterations import may_have_power_iterations


class Surroundings:
    """The buffers of networks, and the layers whose passes in training mode advance something.

    Args:
        buffers: The buffers that passes may write to.
        networks: The networks that hold them.

    Attributes:
        buffers: As given.
        read_in_training: Those of them that a pass in training mode reads.
        iterating: The networks, if power iterations may be in them.
        shared_tables: Embeddings whose table other layers use too, which have a row of padding.
        is_plain: Whether passes may leave nothing behind that another pass reads.
    """

    def __init__(
        self, buffers: Sequence[BufferSlot] = (), networks: Iterable[nn.Module] = ()
    ) -> None:
        given = list(networks)
        self.buffers = list(buffers)
        self.read_in_training = read_in_training(self.buffers)
        self.iterating = given if may_have_power_iterations(self.buffers) else []
        self.shared_tables = shared_tables(given)
        self.is_plain = not (self.read_in_training or self.iterating or self.shared_tables)

    def are_there(self) -> bool:
        """Return whether no buffer has been deleted since."""
        return all([name in owner._buffers for owner, name in self.buffers])


NONE = Surroundings()
"""Those of losses that are functions of parameters alone."""
