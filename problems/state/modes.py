"""Training and evaluation mode of networks whose parts differ: a frozen batch norm stays frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class Modes:
    """Switches a network between evaluation and the modes its parts have in training."""

    def __init__(self) -> None:
        self._noted: dict[nn.Module, bool] | None = None

    def note(self, network: nn.Module) -> None:
        """Remember the present modes for :meth:`train`, unless in evaluation mode or noted."""
        if network.training and self._noted is None:
            self._noted = _modes_of(network)

    def train(self, network: nn.Module) -> None:
        """Put a network into training mode, its parts into the noted ones.

        If none were noted, parts in evaluation mode of a network in training mode stay in it.
        """
        noted, self._noted = self._noted, None
        if noted is not None and network in noted:
            _put_modes(network, noted)
            return
        before = _modes_of(network) if network.training else {}
        # A network that overrides train() may put parts into evaluation mode there.
        network.train()
        frozen = [module for module, training in before.items() if not training]
        _put_modes(network, {part: before[part] for f in frozen for part in f.modules()})

    def state_dict(self, network: nn.Module) -> dict[str, bool] | None:
        """Return the modes in training by name; ``None`` where they are not known."""
        modes = self._noted or (_modes_of(network) if network.training else {})
        found = {name: modes[m] for name, m in network.named_modules() if m in modes}
        return found or None

    def load_state_dict(self, network: nn.Module, state: Mapping[str, bool] | None) -> None:
        """Set the modes in training, at once or for the next :meth:`train`."""
        given = state or {}
        modes = {m: given[name] for name, m in network.named_modules() if name in given}
        if self._noted is not None:
            self._noted.update(modes)
        else:
            _put_modes(network, modes)


def _modes_of(network: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in network.modules()}


def _put_modes(network: nn.Module, modes: Mapping[nn.Module, bool]) -> None:
    # By train() and not by the attribute, since networks override it. It includes what is below,
    # so parents come first.
    for module in network.modules():
        wanted = modes.get(module, module.training)
        if module.training != wanted:
            module.train(wanted)
