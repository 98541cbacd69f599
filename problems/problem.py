"""One level of a multilevel program: its loss, parameters, data, state and how to step it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, cast

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .base.errors import ConfigurationError, GraphError, LossError
from .base.graph_node import GraphNode
from .base.loss import Evaluated, TrainingOutput, loss_of
from .base.memory_layout import with_memory_format
from .base.ordinary_tensors import without_graph
from .base.overridables import Overridables
from .base.settings import LeftOutText, shown
from .config import Config
from .data.loaders import BatchSource
from .data.step_interface import require_known_step, require_plain_step
from .data.validation import (
    checked_device,
    checked_name,
    require_loadable,
    require_loaders,
    require_module,
    require_movable,
    require_optimizer,
    require_scheduler,
)
from .hypergradients.base import Hypergradient
from .hypergradients.parameter_selection import chosen_parameters
from .hypergradients.product import Status
from .hypergradients.resolve import resolve
from .kernels.bare_step import take_step
from .kernels.checkpointing import not_reentrant
from .kernels.compilation import compile_module
from .kernels.precision import autocast, require_wide_parameters
from .recording.step_state import StepState
from .state.fitted_state import fitted_state
from .state.module_state import load_module
from .state.optimizer_state import load_optimizer
from .state.parameter_groups import put_parameter_groups
from .unrolling import apply_learned_settings, owns_settings

ModuleType = TypeVar("ModuleType", bound=nn.Module, default=Any)


class Problem(Overridables, GraphNode, Generic[ModuleType]):
    """Base class of every level. Users derive from
    :class:`~metaweight.problems.ImplicitProblem` and define :meth:`training_step`.

    For type checkers ``ImplicitProblem[Net]`` is a problem whose ``module`` is a ``Net``; without
    the brackets it is anything.

    Other problems of the same engine are attributes by their names: ``self.outer(x)`` calls
    ``forward`` of the problem named ``"outer"``.

    Args:
        name: How other problems refer to this one; an identifier.
        config: Its settings; the defaults of :class:`Config` when left out.
        module: Its network, or define :meth:`configure_module`.
        optimizer: Any torch optimizer over the module's parameters, used as given, or define
            :meth:`configure_optimizer`.
        scheduler: Any torch scheduler of that optimizer, or define :meth:`configure_scheduler`.
            It steps with every step of the problem. One of timm's is told the number of steps by
            ``step_update``, and the number of epochs of the first loader by ``step``.
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
        module: ModuleType | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        train_data_loader: Any = None,
        extra_config: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(checked_name(name))
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
        # Without one, configure_module makes it when the engine is built.
        self.module = cast(ModuleType, module)
        self.optimizer: Any = optimizer
        self.scheduler = scheduler
        self.train_data_loader = train_data_loader
        self.device: Any = None if device is None else checked_device(f"Problem {name!r}", device)
        self.env: Any = None
        self.logger: Any = None
        self._hypergradient = resolve(self._config)
        # What the run keeps about the problem; the engine's, and written by its own methods.
        self.step_state = StepState()
        self.warn_of_near_misses()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the problem computes; by default its module."""
        return self.module(*args, **kwargs)

    def training_step(self, batch: Any) -> TrainingOutput:
        """Return the loss of ``batch``, or a mapping with it under ``"loss"`` and values to log.

        It must be a function of the batch, the parameters and the random streams alone, and leave
        the batch as it is, since a hypergradient evaluates it several times.
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
        held = self.step_state.held
        if held is not None:
            return held
        if self.optimizer is None:
            return [p for p in self.module.parameters() if p.requires_grad]
        optimized = self.step_state.optimized(self.module, self.optimizer.param_groups)
        return [p for p in optimized if p.requires_grad]

    def meta_trainable_parameters(self) -> Iterable[Tensor]:
        """The parameters upper problems differentiate through: by default all trainable ones, or
        those of them that ``Config(hypergradient_parameters=...)`` chooses."""
        choice = self._config.hypergradient_parameters
        if choice is None:
            return self.trainable_parameters()
        trained = list(self.trainable_parameters())
        return chosen_parameters(choice, self.module, trained, self.count, self._name)

    def custom_optimizer_step(self) -> None:
        """Apply the gradients; override to replace the optimizer's own step."""
        scaler = self.step_state.scaler
        if scaler is not None:
            scaler.step(self.optimizer)
        else:
            take_step(self.optimizer)

    def get_batch(self) -> Any:
        """Return the next batch: one loader's, or a tuple with one of each loader."""
        source = self.step_state.source or self.source
        if len(source.loaders) == 1:
            return self.get_batch_single_loader(0)
        return tuple([self.get_batch_single_loader(i) for i in range(len(source.loaders))])

    def get_batch_single_loader(self, idx: int) -> Any:
        """Return the next batch of one loader, on the problem's device."""
        state = self.step_state
        source = state.source or self.source
        return source.draw(idx, self.device, channels_last=state.channels_last)

    def evaluate(self, batch: Any) -> Evaluated:
        """Return the loss of ``batch`` in the problem's precision, and what else to log."""
        if self._config.precision == "fp32":
            with not_reentrant():
                return self._evaluate(batch)
        with not_reentrant(), autocast(self._config.precision, self.device):
            return self._evaluate(batch)

    def _evaluate(self, batch: Any) -> Evaluated:
        output = self.training_step(batch)
        # A tensor is what most return, and to ask whether it is a Mapping takes a microsecond.
        if isinstance(output, Tensor) or not isinstance(output, Mapping):
            return Evaluated(loss_of(self._name, output), {})
        return Evaluated(loss_of(self._name, output), output)

    def optimizer_step(self) -> None:
        """Unscale and clip the gradients, then apply them with :meth:`custom_optimizer_step`."""
        scaler, trajectory = self.step_state.scaler, self.step_state.trajectory
        feed = self.step_state.feed
        if owns_settings(self):
            apply_learned_settings(self)
        if feed is not None:
            feed.prepare(self)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if trajectory.recording.optimizer:
            trajectory.keep_optimizer(self)
        if self._config.gradient_clipping > 0:
            torch.nn.utils.clip_grad_norm_(
                self.trainable_parameters(), self._config.gradient_clipping
            )
        if feed is None:
            self.custom_optimizer_step()
        else:
            feed.update(self)
        if scaler is not None:
            scaler.update()

    def zero_grad(self) -> None:
        """Drop the gradients of the trainable parameters."""
        for parameter in self.step_state.held or self.trainable_parameters():
            parameter.grad = None

    def step(self, global_step: int | None = None) -> None:
        """Take one step of this problem and of every upper problem that becomes due.

        Raises:
            GraphError: When the problem belongs to no engine.
        """
        if self.step_state.driver is None:
            raise GraphError(
                f"Problem {self._name!r} was asked to step but belongs to no engine; "
                "build an Engine with it first."
            )
        self.step_state.driver(self, global_step)

    def set_module(self, module: ModuleType) -> None:
        """Use another module from now on, on the problem's device. The optimizer stays.

        With several processes all must call it; the module gets the values of the first one.

        Raises:
            ConfigurationError: For what is no module, cannot be moved to the device, or has batch
                norms that cannot be synchronised where that is asked for.
            GraphError: For a module that differs between processes.
        """
        module = self._on_device(module)
        self.step_state.processes.own_module(self._name, module)
        self._put_module(module)
        self.step_state.method_states.forget()

    def _on_device(self, module: ModuleType) -> ModuleType:
        require_module(self._name, module)
        if any(t.device != self.device for t in (*module.parameters(), *module.buffers())):
            require_movable(self._name, module, self.device)
            module = module.to(self.device)
        return module

    def _put_module(self, module: ModuleType) -> None:
        self.module = with_memory_format(module, self.step_state.channels_last)
        compile_module(self.module, self._config.compile)

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer from now on, with the groups of ``param_groups()``.

        Raises:
            ConfigurationError: For what is no optimizer, or no groups; unless
                :meth:`custom_optimizer_step` is overridden, for an optimizer that evaluates the
                loss itself or would turn float16 parameters into NaN.
        """
        require_optimizer(self._name, optimizer)
        if type(self).custom_optimizer_step is Problem.custom_optimizer_step:
            require_plain_step(self._name, optimizer)
            require_wide_parameters(self._name, optimizer, self._config.precision)
        self.optimizer = optimizer
        put_parameter_groups(self._name, self.param_groups(), optimizer, self.scheduler)
        self.step_state.processes.own_optimizer(self)

    def set_scheduler(self, scheduler: Any) -> None:
        """Use another scheduler of the problem's optimizer from now on, or none."""
        if scheduler is not None:
            require_scheduler(self._name, scheduler, self.optimizer)
            require_known_step(self._name, scheduler)
        self.scheduler = scheduler

    def set_train_data_loader(self, loader: Any, idx: int = 0) -> None:
        """Use another loader in place of the ``idx``-th from the next batch on."""
        self.source.replace(loader, idx)

    def state_dict(self) -> dict[str, Any]:
        """State of the module, optimizer, scheduler and loss scaler.

        Where processes share out the optimizer's state, all of them call this.
        """
        parts = {
            "module": self.module,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }
        with self.step_state.processes.whole_optimizer(self):
            return {key: part.state_dict() for key, part in parts.items() if part is not None}

    @without_graph
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            CheckpointError: When it is of another module; nothing is changed then.
        """
        state_dict = fitted_state(self.module, self.optimizer, state_dict)
        require_loadable(self._name, self.module, self.optimizer, state_dict)
        load_module(self.module, state_dict["module"])
        if self.optimizer is not None:
            load_optimizer(self.optimizer, state_dict["optimizer"])
            self.step_state.processes.own_optimizer(self)
        for key, part in (("scheduler", self.scheduler), ("scaler", self.scaler)):
            if part is not None and key in state_dict:
                part.load_state_dict(state_dict[key])

    def train(self) -> None:
        """Put the module, and an optimizer that has modes, into training mode; submodules that were
        in evaluation mode stay in it.

        A module that is in evaluation mode as a whole, and was not put there by :meth:`eval`, gets
        all of its submodules into training mode.
        """
        self.step_state.modes.train(self.module)
        self._switch_optimizer("train")

    def eval(self) -> None:
        """Put the module, and an optimizer that has modes, into evaluation mode, until
        :meth:`train`.

        A schedule-free optimizer then puts the weights to be evaluated in place of those that it
        trains.
        """
        self.step_state.modes.note(self.module)
        self.module.eval()
        self._switch_optimizer("eval")

    def _switch_optimizer(self, mode: str) -> None:
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    def is_rank_zero(self) -> bool:
        """Whether this process is the one that logs."""
        return self.step_state.processes.rank == 0

    def join(self, state: StepState, *, logger: Any, env: Any) -> None:
        """Belong to an engine: what it keeps about the problem, its logger and environment."""
        self.step_state, self.logger, self.env = state, logger, env

    def build(self, device: torch.device, *, channels_last: bool = False) -> None:
        """Build what the constructor was not given, on ``device`` unless the problem names one.

        What the user made is used as it is.

        Raises:
            GraphError: Without a module.
            ConfigurationError: For what is of another kind than was asked for.
            DataError: For a loader that cannot be iterated.
        """
        self.device = torch.device(device) if self.device is None else self.device
        self.step_state.use_channels_last(channels_last=channels_last)
        if self.train_data_loader is None:
            self.train_data_loader = self.configure_train_data_loader()
        loaders, source = self.train_data_loader, self.step_state.source
        if loaders is not None and (source is None or loaders is not source.loaders):
            require_loaders(self._name, loaders)
            self.train_data_loader = list(loaders) if isinstance(loaders, tuple) else [loaders]
        made = self.configure_module() if self.module is None else self.module
        if made is None:
            raise GraphError(
                f"Problem {self._name!r} has no module; give it module=, or define "
                "configure_module."
            )
        self._put_module(self._on_device(made))
        optimizer = self.configure_optimizer() if self.optimizer is None else self.optimizer
        if optimizer is not None:
            self.set_optimizer(optimizer)
        self.set_scheduler(self.configure_scheduler() if self.scheduler is None else self.scheduler)

    def use_precision(self, precision: str) -> None:
        """Compute in an engine's precision, unless the problem's ``Config`` has one of its own."""
        if isinstance(self._config.precision, LeftOutText):
            self._config = replace(self._config, precision=LeftOutText(precision))

    @property
    def config(self) -> Config:
        """The problem's settings."""
        return self._config

    @property
    def hypergradient_status(self) -> Status | None:
        """How the latest hypergradient product through this problem was found."""
        return self.step_state.hypergradient_status

    @property
    def hypergradient(self) -> Hypergradient:
        """How upper problems differentiate through this one."""
        return self._hypergradient

    @property
    def source(self) -> BatchSource:
        """The problem's loaders."""
        source = self.step_state.source
        if source is None:
            raise GraphError(
                f"Problem {self._name!r} has no loaders in use; they come into use when an Engine "
                "is built with train_data_loader given or configure_train_data_loader defined."
            )
        return source

    @property
    def epoch_counter(self) -> list[int]:
        """Epochs finished, per loader."""
        return self.source.epochs

    @property
    def cur_batch(self) -> Any:
        """The batch of the latest step."""
        return self.step_state.batch

    @property
    def scaler(self) -> Any:
        """The loss scaler of half precision; none in other precisions."""
        return self.step_state.scaler

    @property
    def count(self) -> int:
        """Steps this problem has taken."""
        return self.step_state.count
