"""One, two and three levels of MLPs, the same text on Betty and on metaweight.

- ``teacher`` trains on noisy samples, weighted where there is a level above it;
- ``student`` (three levels) trains on other samples and on the teacher's predictions for them;
- ``weights`` weights the teacher's samples by their losses, and evaluates the last problem below it
  on clean samples.

A step is one step of every level. With three levels, the hypergradient goes from the student to the
teacher, and from the teacher to the weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from hypergradient_tasks.programs import Library, on_betty, on_metaweight
from speed_bilevel import Optimizer, meta_adam
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Step, later

from metaweight import Unroll
from metaweight.weighting import MetaWeightNet

FEATURES, CLASSES, ALPHA = 784, 10, 0.01
Batch = tuple[Tensor, Tensor]


class Modules(NamedTuple):
    """The module of each level."""

    teacher: nn.Module
    student: nn.Module
    weights: nn.Module


@dataclass(frozen=True)
class Levels:
    """The program.

    Attributes:
        levels: How many levels it has, 1 to 3.
        batch: Samples of a batch.
        width: Width of the hidden layers.
        dtype: Precision of everything.
        upper_optimizer: Makes the optimizer of the weights.
    """

    levels: int = 3
    batch: int = 100
    width: int = 100
    dtype: torch.dtype = torch.float32
    upper_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = meta_adam

    def modules(self) -> Modules:
        """Return the modules, the same for every contender."""
        torch.manual_seed(0)
        made = [self._network() for _ in range(2)]
        return Modules(*(m.to(self.dtype) for m in (*made, MetaWeightNet())))

    def batches(self) -> list[Batch]:
        """Return the batch of each level, from the lowest."""
        generator = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn(self.batch, FEATURES, generator=generator, dtype=self.dtype),
                torch.randint(0, CLASSES, (self.batch,), generator=generator),
            )
            for _ in range(3)
        ]

    def _network(self) -> nn.Module:
        hidden = nn.Linear(FEATURES, self.width)
        return nn.Sequential(hidden, nn.Tanh(), nn.Linear(self.width, CLASSES))


def lower_optimizer(module: nn.Module) -> Optimizer:
    """Return the optimizer of teacher and student."""
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def teacher_loss(teacher: Any, weights: Any, batch: Batch) -> Tensor:
    """Return the cross-entropy, weighted unless ``weights`` is ``None``."""
    inputs, labels = batch
    losses = F.cross_entropy(teacher(inputs), labels, reduction="none")
    return losses.mean() if weights is None else (weights(losses.detach()) * losses).mean()


def student_loss(student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Return the cross-entropy to the labels and to the teacher's predictions."""
    inputs, labels = batch
    logits = student(inputs)
    distilled = F.cross_entropy(logits, teacher(inputs).softmax(-1))
    return F.cross_entropy(logits, labels) + distilled


def plain(program: Levels) -> Step:
    """Return an ordinary training step of the teacher alone."""
    teacher = program.modules().teacher
    optimizer, batch = lower_optimizer(teacher), program.batches()[0]

    def step() -> None:
        optimizer.zero_grad()
        teacher_loss(teacher, None, batch).backward()
        optimizer.step()

    return step


def hand_written(program: Levels) -> Step:
    """Return the step of three levels as written without a library."""
    teacher, student, weights = program.modules()
    low, middle, high = program.batches()
    optimizers = [lower_optimizer(teacher), lower_optimizer(student)]
    upper_optimizer = program.upper_optimizer(weights.parameters())
    low_parameters, middle_parameters, high_parameters = (
        list(module.parameters()) for module in (teacher, student, weights)
    )

    def of_teacher() -> Tensor:
        return teacher_loss(teacher, weights, low)

    def of_student() -> Tensor:
        return student_loss(student, teacher, middle)

    def step() -> None:
        descend(of_teacher(), low_parameters, optimizers[0])
        descend(of_student(), middle_parameters, optimizers[1])
        judged = F.cross_entropy(student(high[0]), high[1])
        v = torch.autograd.grad(judged, middle_parameters)
        v = minus_mixed_product(of_student, middle_parameters, v, low_parameters)
        v = minus_mixed_product(of_teacher, low_parameters, v, high_parameters)
        for parameter, gradient in zip(high_parameters, v, strict=True):
            parameter.grad = gradient
        upper_optimizer.step()

    return step


def descend(loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
    """Step down a loss."""
    found = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    optimizer.step()


def minus_mixed_product(
    loss: Callable[[], Tensor],
    at: list[nn.Parameter],
    v: tuple[Tensor, ...],
    wanted: list[nn.Parameter],
) -> tuple[Tensor, ...]:
    """Return ``-∂²L/∂θ∂w · v`` by a central difference; ``w`` are displaced and restored."""
    eps = (ALPHA / torch.cat([t.reshape(-1) for t in v]).norm()).item()
    found = []
    for move in (eps, -2 * eps):
        with torch.no_grad():
            torch._foreach_add_(at, v, alpha=move)
        found.append(torch.autograd.grad(loss(), wanted))
    with torch.no_grad():
        torch._foreach_add_(at, v, alpha=eps)
    plus, minus = found
    return tuple((m - p) / (2 * eps) for p, m in zip(plus, minus, strict=True))


def on(program: Levels, library: Callable[[], Library], kind: Any = "darts") -> Step:
    """Return the step of the program on a library.

    Args:
        program: The program.
        library: The library on which it runs.
        kind: Hypergradient method for teacher and student.
    """
    names = library()
    modules, batches = program.modules(), program.batches()

    class Teacher(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            weights = self.reweight if program.levels > 1 else None
            return teacher_loss(self.module, weights, batch)

    class Student(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return student_loss(self.module, self.teacher, batch)

    class Reweight(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            judged = self.student if program.levels > 2 else self.teacher
            return F.cross_entropy(judged(batch[0]), batch[1])

    def problem(cls: Any, name: str, module: nn.Module, batch: Batch, optimizer: Any) -> Any:
        # Without this setting Betty frees the graph of an upper loss before its last use.
        config = names.config(type=kind, retain_graph=True)
        return cls(
            name=name,
            config=config,
            module=module,
            optimizer=optimizer,
            train_data_loader=[batch],
        )

    low = problem(Teacher, "teacher", modules.teacher, batches[0], lower_optimizer(modules.teacher))
    middle = problem(
        Student, "student", modules.student, batches[1], lower_optimizer(modules.student)
    )
    upper_optimizer = program.upper_optimizer(modules.weights.parameters())
    high = problem(Reweight, "reweight", modules.weights, batches[2], upper_optimizer)
    graphs: dict[int, tuple[list[Any], dict[Any, list[Any]], dict[Any, list[Any]]]] = {
        1: ([low], {}, {}),
        2: ([low, high], {high: [low]}, {low: [high]}),
        3: ([low, middle, high], {high: [low]}, {low: [middle], middle: [high]}),
    }
    problems, down, up = graphs[program.levels]
    engine = names.engine(
        problems=problems,
        config=names.engine_config(train_iters=1, strategy="cpu"),
        dependencies={"u2l": down, "l2u": up},
    )
    engine.train()
    step: Step = engine.train_step
    return step


PLAIN, HAND = "plain step", "hand-written"
OURS, BETTY = "metaweight", "betty-ml"
ONE_SIDED, EXACT = "metaweight, unrolled, one-sided", "metaweight, exact"
Maker = Callable[[Levels], Step]


def three_level_contenders(
    names: Sequence[str] = (PLAIN, HAND, OURS, BETTY), **program: Any
) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; peers that are missing are left out.

    Args:
        names: Names of the contenders.
        **program: See :class:`Levels`.
    """
    makers: dict[str, Maker] = {
        PLAIN: plain,
        HAND: hand_written,
        OURS: partial(on, library=on_metaweight),
        ONE_SIDED: partial(on, library=on_metaweight, kind=Unroll(product="one_sided")),
        EXACT: partial(on, library=on_metaweight, kind=Unroll()),
    }
    if importlib.util.find_spec("betty"):
        makers[BETTY] = partial(on, library=on_betty)
    given = partial(Levels, **program)
    return {name: later(makers[name], given) for name in names if name in makers}
