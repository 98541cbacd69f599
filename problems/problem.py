"""One level of a multilevel program: its loss, parameters, data, state and how to step it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from .base.errors import ConfigurationError, GraphError, LossError
from .base.memory_layout import laid_out
from .base.overridables import Overridables
from .base.reduction import Reduction
from .base.settings import shown
from .config import Config
from .data.loaders import BatchSource
from .data.validation import (
    checked_device,
    checked_name,
    require_loadable,
    require_loaders,
    require_module,
    require_optimizer,
    require_scheduler,
)
from .hypergradients.audit import Auditor
from .hypergradients.base import Hypergradient, Status
from .hypergradients.parameter_selection import chosen_parameters
from .hypergradients.resolve import resolve
from .kernels.compilation import compile_module
from .kernels.precision import autocast
from .recording.trajectory import RecordedStep, Recording, Trajectory
from .state.buffers import BufferSlot, KeptBuffers, buffer_slots
from .state.optimizer_state import load_optimizer
from .unrolling import apply_learned_settings

TrainingOutput = Tensor | Mapping[str, Any]


@dataclass(frozen=True)
class GraphPosition:
    """Where a problem stands: its neighbours, its hypergradient paths, and all others by name."""

    parents: tuple[Problem, ...] = ()
    children: tuple[Problem, ...] = ()
    paths: tuple[tuple[Problem, ...], ...] = ()
    peers: Mapping[str, Problem] = field(default_factory=dict)

    @cached_property
    def lowers(self) -> list[Problem]:
        """The problems hypergradients go through, each once."""
        return list(dict.fromkeys(lower for path in self.paths for lower in path[1:-1]))


class Problem(Overridables):
    """Base class of every level. Users derive from
    :class:`~metaweight.problems.ImplicitProblem` and define :meth:`training_step`.

    Other problems of the same engine are attributes by their names: ``self.outer(x)`` calls
    ``forward`` of the problem named ``"outer"``.

    Args:
        name: How other problems refer to this one; an identifier.
        config: Its settings; the defaults of :class:`Config` when left out.
        module: Its network, or define :meth:`configure_module`.
        optimizer: Any torch optimizer over the module's parameters, used as given, or define
            :meth:`configure_optimizer`.
        scheduler: Any torch scheduler of that optimizer, or define :meth:`configure_scheduler`.
            It steps with every step of the problem.
        train_data_loader: An iterable of batches, or a tuple of several, whose batches then come
            as a tuple; or define :meth:`configure_train_data_loader`, or override
            :meth:`get_batch`.
        extra_config: Anything; kept as ``self.cfg``.
        device: Where the problem lives, if not where the engine puts it.

    Raises:
        ConfigurationError: For a name that is not an identifier, for a config, module, optimizer,
            scheduler or device of another kind, and for a scheduler of another optimizer.
        DataError: For a loader that cannot be iterated.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        module: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        train_data_loader: Any = None,
        extra_config: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._name = checked_name(name)
        if config is not None and not isinstance(config, Config):
            raise ConfigurationError(
                f"Problem {name!r} received config={shown(config)}; give a Config, or leave it out."
            )
        if module is not None:
            require_module(name, module)
        if optimizer is not None:
            require_optimizer(name, optimizer)
        if scheduler is not None:
            require_scheduler(name, scheduler, optimizer)
        if train_data_loader is not None:
            require_loaders(name, train_data_loader)
        self._config = Config() if config is None else config
        self.cfg = extra_config
        self.module: Any = module
        self.optimizer: Any = optimizer
        self.scheduler = scheduler
        self.train_data_loader = train_data_loader
        self.device: Any = None if device is None else checked_device(f"Problem {name!r}", device)
        self.channels_last = False
        self.scaler: Any = None
        self.env: Any = None
        self.logger: Any = None
        self.cur_batch: Any = None
        self.trajectory = Trajectory(Recording())
        self.hypergradient_status: Status | None = None
        self.auditor: Auditor | None = None
        self.skipped = False
        self.undetected_dependencies: list[Problem] = []
        self.references: dict[str, str] = {}
        self.keeps_hypergradient_terms = False
        self.hypergradient_terms: dict[str, list[Tensor]] = {}
        self.processes = Reduction()
        self._position = GraphPosition()
        self._hypergradient = resolve(self._config)
        self._source: BatchSource | None = None
        self._driver: Callable[[Problem, int | None], None] | None = None
        self._count = 0
        self._global_step: int | None = None
        self._held: list[Tensor] | None = None
        kind = type(self).meta_trainable_parameters
        self.chooses_by_method = kind is not Problem.meta_trainable_parameters
        self._others: tuple[list[nn.Module], list[BufferSlot]] | None = None
        self._kept: KeptBuffers | None = None
        self._owned: tuple[nn.Module | None, list[Tensor], list[Tensor]] = (None, [], [])
        self.warn_of_near_misses()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            peers = self.__dict__["_position"].peers if "_position" in self.__dict__ else {}
            known = f" Problems it can see: {', '.join(sorted(peers)) or 'none yet'}."
        else:
            known = ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.{known}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the problem computes; by default its module."""
        return self.module(*args, **kwargs)

    def training_step(self, batch: Any) -> TrainingOutput:
        """Return the loss of ``batch``, or a mapping with it under ``"loss"`` and values to log.

        It must be a function of the batch, the parameters and the random streams alone, since a
        hypergradient evaluates it several times.
        """
        raise LossError(
            f"Problem {self._name!r} has no training_step; define it in {type(self).__name__}."
        )

    def require_loss(self) -> None:
        """Refuse a class that does not say what its loss is.

        Raises:
            GraphError: Naming what to define.
        """
        kind = type(self)
        if kind.training_step is Problem.training_step or not callable(self.training_step):
            raise GraphError(
                f"Problem {self._name!r} has no loss; define training_step in {kind.__name__}."
            )

    def parameters(self) -> list[Tensor]:
        """All parameters of the problem."""
        return list(self.module.parameters())

    def trainable_parameters(self) -> Iterable[Tensor]:
        """The parameters this problem trains: by default those that require a gradient and belong
        to the optimizer."""
        if self._held is not None:
            return self._held
        return [p for p in self._optimized() if p.requires_grad]

    def meta_trainable_parameters(self) -> Iterable[Tensor]:
        """The parameters upper problems differentiate through: by default all trainable ones, or
        those of them that ``Config(hypergradient_parameters=...)`` chooses."""
        if self._config.hypergradient_parameters is None:
            return self.trainable_parameters()
        return chosen_parameters(self)

    def custom_optimizer_step(self) -> None:
        """Apply the gradients; override to replace the optimizer's own step."""
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
        else:
            self.optimizer.step()

    def get_batch(self) -> Any:
        """Return the next batch: one loader's, or a tuple with one of each loader."""
        number = len(self.source.loaders)
        if number == 1:
            return self.get_batch_single_loader(0)
        return tuple(self.get_batch_single_loader(i) for i in range(number))

    def get_batch_single_loader(self, idx: int) -> Any:
        """Return the next batch of one loader, on the problem's device."""
        return self.source.draw(idx, self.device, channels_last=self.channels_last)

    def evaluate(self, batch: Any) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss of ``batch`` in the problem's precision, and what else to log."""
        if self._config.precision == "fp32":
            output = self.training_step(batch)
        else:
            with autocast(self._config.precision, self.device):
                output = self.training_step(batch)
        # A tensor is what most return, and to ask whether it is a Mapping takes a microsecond.
        if isinstance(output, Tensor) or not isinstance(output, Mapping):
            return self.loss_of(output), {}
        return self.loss_of(output), output

    def loss_of(self, output: TrainingOutput) -> Tensor:
        """Return the loss in what ``training_step`` returned, as a 0-dim tensor.

        Raises:
            LossError: When there is none, or it is not one number.
        """
        loss: Any = output
        if not isinstance(loss, Tensor) and isinstance(output, Mapping):
            loss = output.get("loss")
        if not isinstance(loss, Tensor):
            raise LossError(
                f"training_step of problem {self._name!r} returned {type(output).__name__} "
                f"without a loss tensor; return the loss, or a dictionary with it under 'loss'."
            )
        if loss.numel() != 1:
            raise LossError(
                f"training_step of problem {self._name!r} returned a loss of shape "
                f"{tuple(loss.shape)}; reduce it to one number, for instance with .mean()."
            )
        if loss.is_complex():
            raise LossError(
                f"training_step of problem {self._name!r} returned a complex loss, which has no "
                "direction of descent; return a real number, for instance its .abs()."
            )
        return loss.reshape(()) if loss.ndim else loss

    def optimizer_step(self) -> None:
        """Unscale and clip the gradients, then apply them with :meth:`custom_optimizer_step`."""
        apply_learned_settings(self)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.trajectory.keep_optimizer(self)
        if self._config.gradient_clipping > 0:
            torch.nn.utils.clip_grad_norm_(
                self.trainable_parameters(), self._config.gradient_clipping
            )
        self.custom_optimizer_step()
        if self.scaler is not None:
            self.scaler.update()

    def zero_grad(self) -> None:
        """Drop the gradients of the trainable parameters."""
        for parameter in self.trainable_parameters():
            parameter.grad = None

    def step(self, global_step: int | None = None) -> None:
        """Take one step of this problem and of every upper problem that becomes due.

        Raises:
            GraphError: When the problem belongs to no engine.
        """
        if self._driver is None:
            raise GraphError(
                f"Problem {self._name!r} was asked to step but belongs to no engine; "
                "build an Engine with it first."
            )
        self._driver(self, global_step)

    def begin_step(self, count: int, global_step: int | None) -> None:
        """Note that step ``count`` begins."""
        self._count = count
        self._global_step = global_step

    def set_module(self, module: nn.Module) -> None:
        """Use another module from now on. The optimizer is left as it is."""
        require_module(self._name, module)
        self.module = laid_out(module.to(self.device), self.channels_last)
        compile_module(self.module, self._config.compile)

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer from now on."""
        require_optimizer(self._name, optimizer)
        self.optimizer = optimizer
        apply_param_groups(self)
        self.processes.own_optimizer(self)

    def set_scheduler(self, scheduler: Any) -> None:
        """Use another scheduler of the problem's optimizer from now on, or none."""
        if scheduler is not None:
            require_scheduler(self._name, scheduler, self.optimizer)
        self.scheduler = scheduler

    def set_train_data_loader(self, loader: Any, idx: int = 0) -> None:
        """Use another loader in place of the ``idx``-th from the next batch on."""
        self.source.replace(loader, idx)

    def state_dict(self) -> dict[str, Any]:
        """State of the module, optimizer, scheduler and loss scaler.

        Where processes share out parameters or the optimizer's state, all of them call this.
        """
        parts = {
            "module": self.module,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }
        with self.processes.whole_parameters(), self.processes.whole_optimizer(self):
            return {key: part.state_dict() for key, part in parts.items() if part is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            CheckpointError: When it is of another module; nothing is changed then.
        """
        with self.processes.whole_parameters():
            require_loadable(self._name, self.module, self.optimizer, state_dict)
            self.module.load_state_dict(state_dict["module"])
        if self.optimizer is not None:
            load_optimizer(self.optimizer, state_dict["optimizer"])
            self.processes.own_optimizer(self)
        for key, part in (("scheduler", self.scheduler), ("scaler", self.scaler)):
            if part is not None and key in state_dict:
                part.load_state_dict(state_dict[key])

    def train(self) -> None:
        """Put the problem and its module into training mode."""
        self.module.train()

    def eval(self) -> None:
        """Put the problem and its module into evaluation mode."""
        self.module.eval()

    def hold_parameters(self) -> list[Tensor] | None:
        """Let ``trainable_parameters`` keep its present answer, whatever ``requires_grad`` becomes.

        Returns:
            What to hand to :meth:`release_parameters` afterwards.
        """
        before = self._held
        if before is None:
            self._held = list(self.trainable_parameters())
        return before

    def release_parameters(self, before: list[Tensor] | None) -> None:
        """End what :meth:`hold_parameters` began."""
        self._held = before

    def other_buffer_slots(self) -> list[BufferSlot]:
        """Buffers of the other problems' modules, which this problem's step must not change."""
        modules = [self.module, *[peer.module for peer in self._position.peers.values()]]
        if self._others is None or self._others[0] != modules:
            own = {(id(owner), name) for owner, name in buffer_slots(self.module)}
            others = [slot for module in modules[1:] for slot in buffer_slots(module)]
            self._others = (modules, [s for s in others if (id(s[0]), s[1]) not in own])
        return self._others[1]

    def _optimized(self) -> list[Tensor]:
        """Return the module's parameters that are the optimizer's, in the module's order.

        Walking a module takes longer than looking whether the optimizer holds what it did.
        """
        if self.optimizer is None:
            return list(self.module.parameters())
        module, owned, kept = self._owned
        groups = self.optimizer.param_groups
        now = groups[0]["params"] if len(groups) == 1 else [p for g in groups for p in g["params"]]
        if module is not self.module or len(owned) != len(now) or not all(map(is_, owned, now)):
            among = set(now)
            kept = [p for p in self.module.parameters() if p in among]
            self._owned = (self.module, list(now), kept)
        return kept

    def kept_buffers(self) -> KeptBuffers:
        """Note the module's buffers as they are, and return what puts them back."""
        if self._kept is None or self._kept.module is not self.module:
            self._kept = KeptBuffers(self.module)
        self._kept.keep()
        return self._kept

    def all_buffer_slots(self) -> list[BufferSlot]:
        """Buffers of every problem's module."""
        return buffer_slots(self.module) + self.other_buffer_slots()

    def is_rank_zero(self) -> bool:
        """Whether this process is the one that logs."""
        return self.processes.rank == 0

    @property
    def name(self) -> str:
        """The problem's name."""
        return self._name

    @property
    def config(self) -> Config:
        """The problem's settings."""
        return self._config

    @property
    def window(self) -> list[RecordedStep]:
        """Micro-batches of the last optimizer step that was recorded for a hypergradient."""
        return self.trajectory.window

    @property
    def hypergradient(self) -> Hypergradient:
        """How upper problems differentiate through this one."""
        return self._hypergradient

    @property
    def source(self) -> BatchSource:
        """The problem's loaders."""
        if self._source is None:
            raise GraphError(
                f"Problem {self._name!r} has no loaders in use; they come into use when an Engine "
                "is built with train_data_loader given or configure_train_data_loader defined."
            )
        return self._source

    @property
    def epoch_counter(self) -> list[int]:
        """Epochs finished, per loader."""
        return self.source.epochs

    @property
    def count(self) -> int:
        """Steps this problem has taken."""
        return self._count

    @property
    def position(self) -> GraphPosition:
        """Where the problem stands in its graph; with it, its peers become attributes."""
        return self._position

    @position.setter
    def position(self, position: GraphPosition) -> None:
        for name in self._position.peers:
            self.__dict__.pop(name, None)
        self.__dict__.update(position.peers)
        self._position = position

    @property
    def parents(self) -> list[Problem]:
        """Upper problems that step after this one."""
        return list(self._position.parents)

    @property
    def children(self) -> list[Problem]:
        """Lower problems this one waits for."""
        return list(self._position.children)

    @property
    def paths(self) -> list[list[Problem]]:
        """Hypergradient paths: this problem, the lower ones from top to bottom, this problem."""
        return [list(path) for path in self._position.paths]

    @property
    def leaf(self) -> bool:
        """Whether no problem is below this one."""
        return not self._position.children


def apply_param_groups(problem: Problem) -> None:
    """Put the groups of ``param_groups()`` into the optimizer, if the problem defines them."""
    given = problem.param_groups()
    if given is None or problem.optimizer is None:
        return
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise _not_groups(problem, given)
    groups = [dict(group) if isinstance(group, Mapping) else {} for group in given]
    if not groups or not all("params" in group for group in groups):
        raise _not_groups(problem, given)
    scheduled = getattr(problem.scheduler, "base_lrs", None)
    if scheduled is not None and len(scheduled) != len(groups):
        raise ConfigurationError(
            f"param_groups() of problem {problem.name!r} returns {len(groups)} groups, but its "
            f"scheduler was made for {len(scheduled)}; build the scheduler in "
            "configure_scheduler, after the groups are in place."
        )
    kept = list(problem.optimizer.param_groups)
    problem.optimizer.param_groups.clear()
    try:
        for group in groups:
            problem.optimizer.add_param_group(group)
    except BaseException:
        problem.optimizer.param_groups[:] = kept
        raise


def _not_groups(problem: Problem, given: object) -> ConfigurationError:
    return ConfigurationError(
        f"param_groups() of problem {problem.name!r} returned {shown(given)}; return a list of "
        "dictionaries, each with its parameters under 'params'."
    )
