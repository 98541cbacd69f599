"""The ResNet-32 workload: one Meta-Weight-Net step in every library that can take it.

Contenders marked *finite difference* compute the lr-free hypergradient, those marked *unrolled*
differentiate one SGD step exactly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from devices import strategy_on
from torch import Tensor, nn

import metaweight
from metaweight import Config, Engine, EngineConfig, Reweighting
from metaweight.models import ResNet32
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

Step = Callable[[], None]
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
LAST_BLOCK = ("stage3.4", "linear")
ONE_SIDED = Reweighting(derivative="one_sided")
FORWARD = Reweighting(derivative="forward_mode")
META_LR = 1e-5


class Batches:
    """The tensors of the lower and the upper loss, the same for every contender."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.x = torch.randn(size, 3, 32, 32, generator=generator).to(device)
        self.y = torch.randint(0, 10, (size,), generator=generator).to(device)
        self.meta_x = torch.randn(size, 3, 32, 32, generator=generator).to(device)
        self.meta_y = torch.randint(0, 10, (size,), generator=generator).to(device)


def parts(device: str = "cpu") -> tuple[nn.Module, nn.Module, Any, Any]:
    """Return network, weight network and their optimizers, the same for every contender."""
    torch.manual_seed(0)
    net, weights = ResNet32().to(device), MetaWeightNet().to(device)
    return (
        net,
        weights,
        torch.optim.SGD(net.parameters(), **SGD),
        torch.optim.Adam(weights.parameters(), lr=META_LR),
    )


def plain(batches: Batches, channels_last: bool = False, compiled: Any = None) -> Step:
    """Return an ordinary training step, without any weights."""
    net, _, optimizer, _ = parts(batches.device)
    if compiled is not None:
        net.compile(**compiled)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net, x = net.to(memory_format=layout), batches.x.to(memory_format=layout)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), batches.y).backward()
        optimizer.step()

    return step


def ours(batches: Batches, config: Config, channels_last: bool = False) -> Step:
    """Return the step of metaweight's ready-made problems.

    Args:
        batches: The batches of both problems.
        config: Config of the classifier; the upper problem uses the same precision.
        channels_last: Whether images have the ``channels_last`` format.
    """
    net, weights, optimizer, meta_optimizer = parts(batches.device)
    classifier = WeightedClassifier(
        "classifier",
        config,
        weights="reweight",
        module=net,
        optimizer=optimizer,
        train_data_loader=[(batches.x, batches.y)],
    )
    reweight = WeightLearner(
        "reweight",
        Config(precision=config.precision),
        classifier="classifier",
        module=weights,
        optimizer=meta_optimizer,
        train_data_loader=[(batches.meta_x, batches.meta_y)],
    )
    engine = Engine(
        [reweight, classifier],
        EngineConfig(strategy=strategy_on(batches.device), channels_last=channels_last),
        {"u2l": {reweight: [classifier]}, "l2u": {classifier: [reweight]}},
    )
    return engine.train_step


def plain_program(batches: Batches, library: tuple[Any, Any, Any, Any]) -> Step:
    """Return the step of the program as written for Betty, on Betty or on metaweight."""
    engine_type, engine_config, problem, config = library
    net, weights, optimizer, meta_optimizer = parts(batches.device)

    class Outer(problem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            inputs, labels = batch
            return F.cross_entropy(self.inner(inputs), labels)

    class Inner(problem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            inputs, labels = batch
            losses = F.cross_entropy(self.module(inputs), labels, reduction="none").unsqueeze(1)
            return (self.outer(losses.detach()) * losses).mean()

    outer = Outer(
        name="outer",
        config=config(retain_graph=True),
        module=weights,
        optimizer=meta_optimizer,
        train_data_loader=[(batches.meta_x, batches.meta_y)],
    )
    inner = Inner(
        name="inner",
        config=config(),
        module=net,
        optimizer=optimizer,
        train_data_loader=[(batches.x, batches.y)],
    )
    engine = engine_type(
        problems=[outer, inner],
        config=engine_config(train_iters=1, strategy=strategy_on(batches.device)),
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )
    engine.train()
    step: Step = engine.train_step
    return step


def on_betty(batches: Batches) -> Step:
    """Return Betty's step."""
    from betty.configs import Config as BettyConfig
    from betty.configs import EngineConfig as BettyEngineConfig
    from betty.engine import Engine as BettyEngine
    from betty.problems import ImplicitProblem as BettyProblem

    return plain_program(batches, (BettyEngine, BettyEngineConfig, BettyProblem, BettyConfig))


def on_higher(batches: Batches) -> Step:
    """Return the one-step unrolled program on higher."""
    import higher

    net, weights, optimizer, meta_optimizer = parts(batches.device)

    def step() -> None:
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, inner):
            losses = F.cross_entropy(fast(batches.x), batches.y, reduction="none").unsqueeze(1)
            inner.step((weights(losses.detach()) * losses).mean())
            judged = F.cross_entropy(fast(batches.meta_x), batches.meta_y)
            gradients = torch.autograd.grad(judged, list(weights.parameters()))
        apply_meta(weights, gradients, meta_optimizer)
        train_weighted(net, weights, optimizer, batches)

    return step


def on_torchopt(batches: Batches) -> Step:
    """Return the one-step unrolled program on TorchOpt."""
    import torchopt

    net, weights, _, meta_optimizer = parts(batches.device)
    inner = torchopt.MetaSGD(net, **SGD)

    def weighted_loss(detach_weights: bool) -> Tensor:
        losses = F.cross_entropy(net(batches.x), batches.y, reduction="none").unsqueeze(1)
        w = weights(losses.detach())
        return ((w.detach() if detach_weights else w) * losses).mean()

    def step() -> None:
        before = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        optimizer_before = torchopt.extract_state_dict(inner, by="reference")
        inner.step(weighted_loss(detach_weights=False))
        judged = F.cross_entropy(net(batches.meta_x), batches.meta_y)
        gradients = torch.autograd.grad(judged, list(weights.parameters()))
        apply_meta(weights, gradients, meta_optimizer)
        torchopt.recover_state_dict(net, before)
        torchopt.recover_state_dict(inner, optimizer_before)
        inner.step(weighted_loss(detach_weights=True))
        torchopt.stop_gradient(net)
        torchopt.stop_gradient(inner)

    return step


def apply_meta(weights: nn.Module, gradients: Any, optimizer: Any) -> None:
    """Step the weight network."""
    for parameter, gradient in zip(weights.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def train_weighted(net: nn.Module, weights: nn.Module, optimizer: Any, batches: Batches) -> None:
    """Step the network on weighted losses."""
    losses = F.cross_entropy(net(batches.x), batches.y, reduction="none").unsqueeze(1)
    with torch.no_grad():
        w = weights(losses)
    optimizer.zero_grad()
    (w * losses).mean().backward()
    optimizer.step()


def on_metaweight(batches: Batches) -> Step:
    """Return metaweight's step of the program as written for Betty."""
    library = metaweight
    return plain_program(
        batches,
        (library.Engine, library.EngineConfig, library.ImplicitProblem, library.Config),
    )


USUAL, BOTH, CHANNELS_LAST = (False,), (False, True), (True,)
CONFIGS: dict[str, tuple[Config, tuple[bool, ...]]] = {
    "native": (Config(), BOTH),
    "native, one-sided": (Config(type=ONE_SIDED), BOTH),
    "native, forward mode": (Config(type=FORWARD), BOTH),
    "native, one-sided, last block": (
        Config(type=ONE_SIDED, hypergradient_parameters=LAST_BLOCK),
        BOTH,
    ),
    "native, bf16, hypergradient in fp32": (
        Config(type=Reweighting(), precision="bf16"),
        CHANNELS_LAST,
    ),
    "native, one-sided, bf16": (
        Config(type=replace(ONE_SIDED, full_precision=False), precision="bf16"),
        CHANNELS_LAST,
    ),
}
"""metaweight's settings, and the memory formats in which they are measured."""


def resnet32_contenders(size: int, device: str = "cpu") -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps, by name; peers that are missing are left out."""
    makers: dict[str, Callable[[Batches], Step]] = {
        "plain step": plain,
        "plain step, channels last": partial(plain, channels_last=True),
        **{
            f"metaweight, {name}{', channels last' if last else ''}": partial(
                ours, config=config, channels_last=last
            )
            for name, (config, layouts) in CONFIGS.items()
            for last in layouts
        },
        "metaweight, Betty's program": on_metaweight,
    }
    peers: dict[str, tuple[str, Callable[[Batches], Step]]] = {
        "betty-ml, finite difference": ("betty", on_betty),
        "higher, unrolled": ("higher", on_higher),
        "torchopt, unrolled": ("torchopt", on_torchopt),
    }
    makers |= {n: make for n, (package, make) in peers.items() if importlib.util.find_spec(package)}
    return {name: _maker(make, size, device) for name, make in makers.items()}


def _maker(make: Callable[[Batches], Step], size: int, device: str) -> Callable[[], Step]:
    return lambda: make(Batches(size, device))


def compiled_contenders(
    size: int, backend: str = "inductor", device: str = "cpu"
) -> dict[str, Callable[[], Step]]:
    """Return makers of the steps with ``torch.compile``, and of those they are compared with."""
    compiled = {"backend": backend}
    makers: dict[str, Callable[[Batches], Step]] = {
        "plain step": plain,
        "plain step, compiled": partial(plain, compiled=compiled),
        "metaweight, native": partial(ours, config=Config()),
        "metaweight, native, compiled": partial(ours, config=Config(compile=compiled)),
        "metaweight, native, one-sided, compiled": partial(
            ours, config=Config(type=ONE_SIDED, compile=compiled)
        ),
    }
    if importlib.util.find_spec("betty"):
        makers["betty-ml, finite difference"] = on_betty
    return {name: _maker(make, size, device) for name, make in makers.items()}
