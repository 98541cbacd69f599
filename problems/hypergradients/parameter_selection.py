"""Selection of the lower parameters that hypergradients go through.

With the parameters split into ``w = (s, r)``, the hypergradient through ``s`` alone holds ``r``
fixed::

    dF/dθ ≈ ∂F/∂θ + (ds*/dθ)ᵀ ∂F/∂s

The upper problem's backward pass then ends at the first layer of ``s``, and products with second
derivatives use the block of ``s`` only.

Source: Xu, Zhu, Jiang, Yang, "Faster Meta Update Strategy for Noise-Robust Deep Learning" (FaMUS),
CVPR 2021 (arXiv:2104.15092), which learns the layers of each step; here they are drawn uniformly.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..base.errors import ConfigurationError


class ParameterSelection(ABC):
    """A selection among a lower problem's parameters.

    Subclass it for your own. The result must depend on settings and arguments alone, since one
    hypergradient asks for it several times.
    """

    @abstractmethod
    def select(self, module: nn.Module, trainable: Sequence[Tensor], count: int) -> list[Tensor]:
        """Return the parameters hypergradients go through; those not in ``trainable`` are ignored.

        Args:
            module: The problem's module.
            trainable: The parameters the problem trains.
            count: Steps the problem has taken.

        Raises:
            ConfigurationError: Saying what the module lacks, as the end of a sentence that begins
                with "Problem … asks for …, but".
        """


@dataclass(frozen=True)
class NamedModules(ParameterSelection):
    """The parameters of modules by their names in the problem's module.

    ``Config(hypergradient_parameters=("fc", "layer3"))`` is short for it.

    Args:
        names: Names of modules, with all modules inside, or of single parameters.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not isinstance(self.names, Sequence) or not self.names:
            raise ConfigurationError(
                f"hypergradient_parameters={self.names!r} must be a tuple of module names such as "
                "('fc', 'layer3'), LastLayers(k), SampledLayers(k), or None for all parameters."
            )
        object.__setattr__(self, "names", tuple(self.names))
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise ConfigurationError(
                    f"hypergradient_parameters={self.names!r} holds {name!r}; give names of "
                    "modules, such as 'fc'."
                )

    def select(self, module: nn.Module, trainable: Sequence[Tensor], count: int) -> list[Tensor]:
        del trainable, count
        parameters = dict(module.named_parameters(remove_duplicate=False))
        modules = dict(module.named_modules(remove_duplicate=False))
        chosen: list[Tensor] = []
        for name in self.names:
            if name in modules:
                chosen += modules[name].parameters()
            elif name in parameters:
                chosen.append(parameters[name])
            else:
                raise ConfigurationError(_unknown(name, modules))
        return chosen


@dataclass(frozen=True)
class LastLayers(ParameterSelection):
    """The last modules that own trainable parameters directly, in the order of registration.

    A parameter that several modules share counts once, with the first of them: a backward pass to
    it ends there. The head of a language model whose weights are those of its embeddings is thus
    no last layer, which would save nothing, but part of the first one.

    Args:
        number: Number of modules. A batch norm counts as one, as a convolution does.
    """

    number: int

    def __post_init__(self) -> None:
        _require_number(self, self.number)

    def select(self, module: nn.Module, trainable: Sequence[Tensor], count: int) -> list[Tensor]:
        del count
        layers = _enough(_layers(module, trainable), self.number)
        return [p for layer in layers[-self.number :] for p in layer]


@dataclass(frozen=True)
class SampledLayers(ParameterSelection):
    """Modules that own trainable parameters directly, drawn again for each hypergradient.

    They are drawn uniformly without replacement. The draw depends only on the seed and the number
    of steps the problem has taken, so a resumed run draws the same layers. The hypergradient is not
    rescaled for the layers left out. Parameters that modules share count once, as in
    :class:`LastLayers`.

    Args:
        number: Number of modules.
        seed: Seed of the draws.
    """

    number: int
    seed: int = 0

    def __post_init__(self) -> None:
        _require_number(self, self.number)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigurationError(f"{self!r} needs an integer as seed, such as 0.")

    def select(self, module: nn.Module, trainable: Sequence[Tensor], count: int) -> list[Tensor]:
        layers = _enough(_layers(module, trainable), self.number)
        drawn = random.Random(f"{self.seed} {count}").sample(layers, self.number)
        return [p for layer in drawn for p in layer]


Choice = ParameterSelection | tuple[str, ...] | None


def is_fixed(choice: Choice) -> bool:
    """Return whether a choice is known to be the same for every hypergradient."""
    return choice is None or isinstance(choice, (tuple, NamedModules, LastLayers))


def checked_choice(value: object) -> Choice:
    """Return ``value`` in the form a configuration stores.

    Raises:
        ConfigurationError: When it does not select parameters.
    """
    if value is None or isinstance(value, ParameterSelection):
        return value
    if isinstance(value, type) and issubclass(value, ParameterSelection):
        raise ConfigurationError(
            f"Config(hypergradient_parameters={value.__name__}) received the class; instantiate "
            f"it: {value.__name__}(1)."
        )
    return NamedModules(value).names  # type: ignore[arg-type]


def chosen_parameters(
    choice: Choice, module: nn.Module, trainable: Sequence[Tensor], count: int, name: str
) -> list[Tensor]:
    """Return the selected trainable parameters, in the order of ``trainable``.

    Args:
        choice: ``Config(hypergradient_parameters=...)``.
        module: The problem's module.
        trainable: The parameters the problem trains.
        count: Steps the problem has taken.
        name: The problem's name, for messages.

    Raises:
        ConfigurationError: When the module lacks them, or none of them is trainable.
    """
    if choice is None:
        return list(trainable)
    selection = NamedModules(choice) if isinstance(choice, tuple) else choice
    asked = f"Problem {name!r} asks for Config(hypergradient_parameters={choice!r}), but"
    try:
        selected = set(selection.select(module, trainable, count))
    except ConfigurationError as error:
        raise ConfigurationError(f"{asked} {error}") from error
    chosen = [p for p in trainable if p in selected]
    if not chosen:
        names = ", ".join(_owners(module, trainable))
        raise ConfigurationError(
            f"{asked} the problem trains none of these parameters; it trains those of {names}."
        )
    return chosen


def _layers(module: nn.Module, trainable: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the trainable parameters of each module that owns some directly; shared ones with the
    first owner."""
    left = set(trainable)
    layers: list[list[Tensor]] = []
    for owner in module.modules():
        layer: list[Tensor] = [p for p in owner.parameters(recurse=False) if p in left]
        left.difference_update(layer)
        layers.append(layer)
    return [layer for layer in layers if layer]


def _owners(module: nn.Module, trainable: Sequence[Tensor]) -> list[str]:
    known = set(trainable)
    return [
        name or "the module itself"
        for name, m in module.named_modules()
        if any(p in known for p in m.parameters(recurse=False))
    ]


def _enough(layers: list[list[Tensor]], number: int) -> list[list[Tensor]]:
    if len(layers) < number:
        raise ConfigurationError(
            f"its module has {len(layers)} layers with trainable parameters; ask for at most "
            "that many."
        )
    return layers


def _unknown(name: str, modules: Iterable[str]) -> str:
    known = set(modules)
    parent = name
    while parent not in known:
        parent = parent.rpartition(".")[0]
    children = [m for m in modules if m and m.rpartition(".")[0] == parent]
    place = f"module {parent!r}" if parent else "its module"
    return (
        f"its module has nothing named {name!r}; {place} holds "
        f"{', '.join(children) or 'no further modules'}."
    )


def _require_number(selection: ParameterSelection, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigurationError(f"{selection!r} needs a number of layers of at least 1.")
