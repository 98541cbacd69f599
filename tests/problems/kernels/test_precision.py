"""16-bit training: autocast, loss scaling, and difference steps wide enough for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.kernels.precision import difference_step
from support.small import single
from support.zoo import over
from torch import nn

from metaweight import (
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    ImplicitProblem,
    Reweighting,
)
from metaweight.models import ResNet32
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_takes_the_step_as_it_is(dtype: torch.dtype) -> None:
    assert difference_step(0.01, dtype) == 0.01


@pytest.mark.parametrize(
    ("dtype", "factor"),
    # eps: 2^-23 in single precision, 2^-7 in bfloat16, 2^-10 in float16.
    [(torch.bfloat16, 2 ** (16 / 3)), (torch.float16, 2 ** (13 / 3))],
)
def test_sixteen_bits_widen_the_step_by_the_cube_root_of_their_rounding(
    dtype: torch.dtype, factor: float
) -> None:
    assert difference_step(0.01, dtype) == pytest.approx(0.01 * factor, rel=1e-12)


class Classifier(ImplicitProblem):
    """Notes in which type its network computes."""

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        logits = self.module(x)
        self.seen = logits.dtype
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        if not self.parents:
            return losses.mean()
        return (torch.sigmoid(self.weights(losses.detach()[:, None]))[:, 0] * losses).mean()


class Weights(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch
        return F.cross_entropy(self.classifier(x).float(), y)


def classifier(precision: str, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return Classifier(
        "classifier",
        Config(precision=precision, **settings),
        net,
        torch.optim.SGD(net.parameters(), lr=0.5),
        train_data_loader=[(x, y)],
    )


def accuracy(lower: Any) -> float:
    ((x, y),) = lower.source.loaders[0]
    with torch.no_grad():
        return float((lower.module(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_problem_trains_in_its_precision(precision: str, dtype: torch.dtype) -> None:
    lower = classifier(precision)
    single(lower, steps=40).run()
    assert lower.seen == dtype
    assert accuracy(lower) > 0.9
    assert lower.module[0].weight.dtype == torch.float32


def test_half_precision_scales_its_loss_by_the_configured_numbers() -> None:
    lower = classifier("fp16", initial_dynamic_scale=512.0, scale_factor=4.0)
    single(lower, steps=1).run()
    assert lower.scaler.get_scale() == 512.0
    assert lower.scaler.get_growth_factor() == 4.0
    assert "scaler" in lower.state_dict()


def test_a_step_of_infinite_gradients_is_skipped_and_the_scale_halved() -> None:
    # 2^60 times any gradient is beyond what float16 can hold.
    lower = classifier("fp16", initial_dynamic_scale=2.0**60)
    before = [p.clone() for p in lower.module.parameters()]
    single(lower, steps=1).run()
    assert all(torch.equal(a, b) for a, b in zip(before, lower.module.parameters(), strict=True))
    assert lower.scaler.get_scale() == 2.0**59


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_scale_nothing(precision: str) -> None:
    lower = classifier(precision)
    single(lower).run()
    assert lower.scaler is None


def test_scaled_gradients_are_clipped_at_their_true_size() -> None:
    lower = classifier("fp16", gradient_clipping=1e-3)
    before = [p.clone() for p in lower.module.parameters()]
    single(lower, steps=1).run()
    moves = [(a - b) / 0.5 for a, b in zip(before, lower.module.parameters(), strict=True)]
    norm = torch.nn.utils.get_total_norm([m.detach() for m in moves])
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def hypergradient_move(precision: str) -> torch.Tensor:
    lower = classifier(precision)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = nn.Linear(1, 1)
    upper = Weights(
        "weights",
        Config(precision=precision),
        net,
        torch.optim.SGD(net.parameters(), lr=1.0),
        train_data_loader=lower.train_data_loader,
    )
    before = torch.cat([p.detach().clone().reshape(-1) for p in net.parameters()])
    over(upper, lower, train_iters=1).run()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]) - before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_hypergradient_of_sixteen_bits_is_that_of_single_precision(precision: str) -> None:
    exact, rough = hypergradient_move("fp32"), hypergradient_move(precision)
    assert exact.norm() > 1e-3
    # bfloat16 keeps eight bits: each factor of the product is off by up to 2^-8.
    assert ((rough - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The hypergradient through problem 'classifier' is a .* diff")
@pytest.mark.parametrize("full_precision", [True, False], ids=["in fp32", "in 16 bits"])
@pytest.mark.parametrize("derivative", ["central_difference", "one_sided"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_resnet32s_hypergradient_points_where_double_precision_does(
    precision: str, derivative: str, full_precision: bool
) -> None:
    torch.default_generator.manual_seed(0)
    net, weights = ResNet32(), MetaWeightNet()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 8, 3, 32, 32, generator=generator), torch.arange(16).view(2, 8) % 10
    method = Reweighting(derivative=derivative, full_precision=full_precision)
    lower = WeightedClassifier(
        "classifier",
        Config(type=method, precision=precision),
        weights="reweight",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        train_data_loader=[(x[0], y[0])],
    )
    upper = WeightLearner(
        "reweight",
        Config(precision=precision),
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), lr=1e-5),
        train_data_loader=[(x[1], y[1])],
    )
    graph = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    engine = Engine([upper, lower], EngineConfig(strategy="cpu", channels_last=True), graph)
    engine.train_step()
    (report,) = engine.check_hypergradient()
    # Eight or eleven bits, but hundreds of thousands of roundings that cancel; a difference of two
    # losses in eight bits, each the mean of eight samples, is left with few of them.
    rough = precision == "bf16" and not full_precision
    assert report.converged.cosine >= (0.99 if rough else 0.999)


def half_classifier(make: Any, precision: str = "fp32") -> Any:
    lower = classifier(precision)
    lower.module.half()
    lower.optimizer = make(lower.module.parameters())
    ((x, y),) = lower.train_data_loader
    lower.train_data_loader = [(x.half(), y)]
    return lower


DIVIDING = [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]


@pytest.mark.parametrize("kind", DIVIDING)
def test_half_parameters_of_an_optimizer_that_makes_them_nan_are_refused(kind: Any) -> None:
    place = torch.zeros(1, dtype=torch.float16, requires_grad=True)
    place.grad = torch.zeros_like(place)
    kind([place], weight_decay=0.0).step()
    assert place.isnan(), "torch's own loop"
    message = rf"'classifier' trains .* float16 by {kind.__name__}, whose eps=1e-\d+ is 0 .*fp32"
    with pytest.raises(ConfigurationError, match=message):
        single(half_classifier(kind))
    ready = single(classifier("fp32")).classifier
    with pytest.raises(ConfigurationError, match=r"float16.*Config\(precision='fp16'\)"):
        ready.set_optimizer(kind([place]))
    assert isinstance(ready.optimizer, torch.optim.SGD)


def test_half_parameters_of_an_upper_problem_are_refused() -> None:
    lower = classifier("fp32")
    net = nn.Linear(1, 1).half()
    adam = torch.optim.Adam(net.parameters())
    upper = Weights("weights", None, net, adam, train_data_loader=lower.train_data_loader)
    with pytest.raises(ConfigurationError, match=r"'weights' trains .* float16 by Adam, whose eps"):
        over(upper, lower, train_iters=1)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.5), lambda p: torch.optim.Adam(p, 0.01, eps=1e-3)]
)
def test_other_half_parameters_are_warned_of(make: Any) -> None:
    with pytest.warns(UserWarning, match=r"'classifier' .* float16 by .* as they are: .* bf16"):
        engine = single(half_classifier(make), steps=40)
    engine.run()
    assert accuracy(engine.classifier) > 0.9


def test_half_parameters_and_loss_scaling_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match=r"with Config.*, whose loss scaling needs wider"):
        single(half_classifier(lambda p: torch.optim.SGD(p, 0.5), "fp16"))


def test_frozen_half_parameters_are_nothing_to_warn_of() -> None:
    lower = classifier("fp32")
    lower.module[0].half().requires_grad_(False)
    single(lower)


def test_an_optimizer_that_computes_in_another_type_is_left_alone() -> None:
    class Wide(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                p.data.copy_((p.float() - 0.5 * p.grad.float()).half())

    single(half_classifier(Wide), steps=1).run()
