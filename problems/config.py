"""Settings of one problem, checked when they are made and frozen afterwards."""

from __future__ import annotations

from dataclasses import InitVar, dataclass

from .base.errors import ConfigurationError
from .base.settings import (
    LeftOut,
    LeftOutFloat,
    LeftOutText,
    is_number,
    is_positive,
    require_choice,
    require_count,
    require_flag,
    require_text,
)
from .hypergradients.base import Hypergradient
from .hypergradients.parameter_selection import Choice, checked_choice
from .hypergradients.registry import registered
from .kernels.compilation import Compile, checked_compile

PRECISIONS = ("fp32", "fp16", "bf16")
HYPERGRADIENT_NAMES = (
    "darts",
    "reweighting",
    "unroll",
    "t1t2",
    "sama",
    "neumann",
    "nystrom",
    "cg",
    "soba",
    "saba",
    "masoba",
    "amigo",
    "stocbio",
    "penalty",
    "zero_order",
    "reinforce",
)
COUNTS = {
    "unroll_steps": 1,
    "gradient_accumulation": 1,
    "warmup_steps": 0,
    "neumann_iterations": 0,
    "cg_iterations": 0,
    "log_step": -1,
}
FLAGS = (
    "first_order",
    "retain_graph",
    "allow_unused",
    "allow_absent_hypergradient",
    "log_local_step",
    "darts_multitask",
    "sama_multitask",
)
POSITIVE = (
    "initial_dynamic_scale",
    "darts_alpha",
    "sama_adam_alpha",
    "neumann_alpha",
    "cg_alpha",
)


@dataclass(frozen=True)
class Config:
    """How one problem is optimised and how hypergradients pass through it.

    Args:
        type: How ``(dw*/dθ)ᵀ v`` is formed when an upper problem differentiates through this one:
            ``"darts"``, ``"unroll"``, ``"t1t2"`` (one unrolled step), ``"sama"``, ``"neumann"``,
            ``"nystrom"``, ``"cg"``, ``"soba"``, ``"saba"``, ``"masoba"``, ``"amigo"``,
            ``"stocbio"``, ``"penalty"``, ``"zero_order"``, ``"reinforce"``, ``"reweighting"`` or a
            :class:`~metaweight.problems.hypergradients.Hypergradient` with its own settings.
            A name takes its settings from the ``darts_*``, ``sama_*``, ``neumann_*`` and ``cg_*``
            fields below; an object ignores them.
        unroll_steps: Optimizer steps of this problem for every step of its upper problems.
        first_order: Differentiate through lower problems with their ``type``. ``False`` asks for
            the graph of an unrolled lower problem.
        retain_graph: Accepted for Betty programs. Graphs are kept exactly as long as needed.
        allow_unused: Whether some trainable parameters may be absent from the loss.
        allow_absent_hypergradient: Whether upper parameters may be without any hypergradient:
            neither in this problem's own loss, nor in a lower loss together with what is trained
            there. By default such parameters, which would never be learned, are an error in the
            first step of this problem. Its micro-batches, the steps that it differentiates and all
            processes count together; parameters that are first used later need ``True``.
        gradient_accumulation: Micro-batches averaged into one optimizer step. The hypergradient
            sees all of them.
        gradient_clipping: Largest gradient norm, 0 for no clipping.
        precision: ``"fp32"``, ``"fp16"`` (with loss scaling) or ``"bf16"``, by autocast. When it is
            left out, that of ``EngineConfig(precision=...)``, else ``"fp32"``.
        initial_dynamic_scale: First loss scale of ``"fp16"``.
        scale_factor: Growth factor of the loss scale of ``"fp16"``.
        warmup_steps: Steps of this problem before its upper problems start.
        log_step: Log the loss every so many steps, -1 for never. When it is left out, the loggers
            that ``EngineConfig(logger_type=...)`` asks for get that of every 100th step, and the
            last one if neither this nor a hook left them anything; the console gets none.
        log_local_step: Log against this problem's own step instead of the engine's.
        plateau_metric: Name of the value given to a ``ReduceLROnPlateau`` scheduler: looked up in
            what ``validation`` returns, or in what ``training_step`` returns when the engine has
            no validation.
        darts_alpha: Step of the central difference, ``eps = darts_alpha / ||v||``.
        darts_multitask: Leave the parameters at ``w - eps v`` afterwards (SAMA for SGD).
        sama_adam_alpha: Step of the central difference of ``"sama"``. When it is left out, 0.01, or
            the published 1.0 with ``sama_multitask``, whose step on the upper loss it is.
        sama_multitask: As ``darts_multitask``, for ``"sama"``.
        neumann_iterations: Terms of the Neumann series beyond the first. The default, 1, is Betty's
            and rarely enough; a run that is left with it says so once.
        neumann_alpha: Step ``α`` of the series ``α Σ (I - αH)^k``.
        cg_iterations: Conjugate-gradient iterations. As for ``neumann_iterations``, set it.
        cg_alpha: Scale of the linear system ``(αH) x = v``; the answer does not depend on it.
        hypergradient_parameters: Which parameters of this problem hypergradients go through, the
            others held fixed: ``None`` for all it trains, names of modules such as
            ``("fc", "layer3")``, ``LastLayers(k)`` or ``SampledLayers(k)``.
        compile: Compile the module with ``torch.compile``: ``True``, or its arguments, such as
            ``{"mode": "reduce-overhead"}``. Training passes, the upper problem's passes and the
            passes of differences run compiled. What is differentiated twice or forward runs as it
            was written, since a compiled pass cannot be: ``"unroll"``, ``"neumann"``, ``"cg"``,
            ``"nystrom"`` gain in the other passes only.
        fp16: Older spelling of ``precision="fp16"``.

    Raises:
        ConfigurationError: For an unknown name, a value out of range, or ``fp16`` contradicting
            ``precision``.
    """

    type: str | Hypergradient = "darts"
    unroll_steps: int = 1
    first_order: bool = True
    retain_graph: bool = False
    allow_unused: bool = True
    gradient_accumulation: int = 1
    gradient_clipping: float = 0.0
    precision: str = LeftOutText("fp32")
    initial_dynamic_scale: float = 4096.0
    scale_factor: float = 2.0
    warmup_steps: int = 0
    log_step: int = LeftOut(-1)
    log_local_step: bool = False
    plateau_metric: str = "loss"
    darts_alpha: float = 0.01
    darts_multitask: bool = False
    sama_adam_alpha: float = LeftOutFloat(1.0)
    sama_multitask: bool = False
    neumann_iterations: int = LeftOut(1)
    neumann_alpha: float = 1.0
    cg_iterations: int = LeftOut(1)
    cg_alpha: float = 1.0
    hypergradient_parameters: Choice = None
    compile: Compile = False
    allow_absent_hypergradient: bool = False
    fp16: InitVar[bool | None] = None

    def __post_init__(self, fp16: bool | None) -> None:
        self._merge_fp16(fp16)
        _require_type(self.type)
        choice = checked_choice(self.hypergradient_parameters)
        object.__setattr__(self, "hypergradient_parameters", choice)
        object.__setattr__(self, "compile", checked_compile(self.compile))
        require_choice("Config", "precision", self.precision, PRECISIONS)
        for field, least in COUNTS.items():
            require_count("Config", field, getattr(self, field), least)
        for field in FLAGS:
            require_flag("Config", field, getattr(self, field))
        require_text("Config", "plateau_metric", self.plateau_metric)
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not is_number(self.gradient_clipping, least=0):
            raise ConfigurationError(
                f"Config(gradient_clipping={self.gradient_clipping!r}) is negative or not a finite "
                "number; give the largest norm allowed, or 0 for no clipping."
            )
        for field in POSITIVE:
            value = getattr(self, field)
            if not is_positive(value):
                raise ConfigurationError(f"Config({field}={value!r}) must be positive and finite.")
        if not is_number(self.scale_factor) or not self.scale_factor > 1:
            raise ConfigurationError(
                f"Config(scale_factor={self.scale_factor!r}) must be above 1 and finite, since "
                "the loss scale grows by it; 2.0 is the usual choice."
            )

    def _merge_fp16(self, fp16: bool | None) -> None:
        if fp16 is not None:
            require_flag("Config", "fp16", fp16)
        if not fp16:
            return
        if not isinstance(self.precision, LeftOutText) and self.precision != "fp16":
            raise ConfigurationError(
                f"Config(fp16=True, precision={self.precision!r}) asks for two precisions; "
                "keep only precision=."
            )
        object.__setattr__(self, "precision", "fp16")


def _require_type(value: object) -> None:
    if isinstance(value, Hypergradient):
        return
    if isinstance(value, str) and (value in HYPERGRADIENT_NAMES or value in registered()):
        return
    names = ", ".join(repr(name) for name in (*HYPERGRADIENT_NAMES, *sorted(registered())))
    if isinstance(value, type) and issubclass(value, Hypergradient):
        raise ConfigurationError(
            f"Config(type={value.__name__}) received the class; instantiate it: "
            f"Config(type={value.__name__}())."
        )
    raise ConfigurationError(
        f"Config(type={value!r}) is not a known hypergradient; choose one of {names}, "
        "or give a Hypergradient object. Other packages add names as entry points of the group "
        "'metaweight.hypergradients'."
    )
