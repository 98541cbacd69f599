"""The Mean Teacher workload: WRN-28-2 on a few labelled and as many unlabelled images.

Every Mean Teacher here computes the same: one pass of the student over all images, one of the
teacher over the unlabelled ones without a graph and without a change of its running statistics, the
squared distance of the probabilities, and the average of the parameters after the step, with the
student's buffers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from devices import strategy_on
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Step, later

BETA, WEIGHT = 0.99, 8.0


class Images:
    """The tensors every contender trains on, and its initial network."""

    def __init__(
        self,
        batch: int = 16,
        side: int = 32,
        network: Callable[[], nn.Module] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, side, side)
        self.labelled = torch.randn(shape, generator=generator, dtype=dtype).to(device)
        self.labels = torch.randint(0, 10, (batch,), generator=generator).to(device)
        self.unlabelled = torch.randn(shape, generator=generator, dtype=dtype).to(device)
        self.dtype, self.device = dtype, device
        self._network = network

    def parts(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return network and optimizer, the same for every contender."""
        from metaweight.models import WideResNet28x2

        torch.manual_seed(0)
        net = (self._network or WideResNet28x2)().to(self.device, self.dtype)
        return net, torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)


def supervised(images: Images) -> Step:
    """Return a training step on the labelled images alone."""
    net, optimizer = images.parts()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images.labelled), images.labels).backward()
        optimizer.step()

    return step


def hand_written(images: Images, channels_last: bool = False) -> Step:
    """Return a Mean Teacher's step as written without a library."""
    net, optimizer = images.parts()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(memory_format=layout)
    teacher = copy.deepcopy(net).requires_grad_(False)
    labelled = images.labelled.to(memory_format=layout)
    unlabelled = images.unlabelled.to(memory_format=layout)
    norms = [m for m in teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    size, count = len(labelled), 0

    @torch.no_grad()
    def target() -> Tensor:
        for norm in norms:
            norm.track_running_stats = False
        found: Tensor = teacher(unlabelled).softmax(-1)
        for norm in norms:
            norm.track_running_stats = True
        return found

    @torch.no_grad()
    def average() -> None:
        decay = min(1 - 1 / (count + 1), BETA)
        torch._foreach_lerp_(list(teacher.parameters()), list(net.parameters()), 1 - decay)
        torch._foreach_copy_(list(teacher.buffers()), list(net.buffers()))

    def step() -> None:
        nonlocal count
        logits = net(torch.cat([labelled, unlabelled]))
        distance = (logits[size:].softmax(-1) - target()).square().mean()
        optimizer.zero_grad()
        (F.cross_entropy(logits[:size], images.labels) + WEIGHT * distance).backward()
        optimizer.step()
        count += 1
        average()

    return step


def ours(images: Images, channels_last: bool = False) -> Step:
    """Return the step of metaweight's problem with its hook."""
    from metaweight import Engine, EngineConfig
    from metaweight.averaging import EMAHook
    from metaweight.consistency import MeanTeacher, SemiSupervisedProblem

    net, optimizer = images.parts()
    average = EMAHook("student", BETA, warm_up="mean_teacher")
    student = SemiSupervisedProblem(
        "student",
        method=MeanTeacher(),
        consistency_weight=WEIGHT,
        teacher=average,
        module=net,
        optimizer=optimizer,
        train_data_loader=([(images.labelled, images.labels)], [images.unlabelled]),
    )
    config = EngineConfig(strategy=strategy_on(images.device), channels_last=channels_last)
    engine = Engine([student], config, {"u2l": {}, "l2u": {}}, hooks=[average])
    engine.hooks.run_start(engine)

    def step() -> None:
        engine.train_step()
        engine.hooks.iteration_end(engine)

    return step


def mean_teacher_contenders(**sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; for ``sizes`` see :class:`Images`."""
    makers: dict[str, Callable[[Images], Step]] = {
        "supervised step": supervised,
        "hand-written": hand_written,
        "hand-written, channels last": partial(hand_written, channels_last=True),
        "metaweight": ours,
        "metaweight, channels last": partial(ours, channels_last=True),
    }
    return {name: later(make, partial(Images, **sizes)) for name, make in makers.items()}
