"""Adapters on layers that bitsandbytes keeps in 4 or 8 bits, and its 8-bit optimizer.

The oracle is a naive program in double precision on the same layers dequantised: their values are
exact there, so that what is left is the rounding of single precision, and the error of a
difference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.setup import layers
from torch import Tensor, nn
from torch.func import functional_call

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    Engine,
    EngineConfig,
    HypergradientError,
    Reweighting,
    Unroll,
)
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

bnb: Any = pytest.importorskip("bitsandbytes")

LR = 0.1
SIZES = ((64, 128), (128, 64))
KINDS = ("4 bits", "8 bits")


class Adapted(nn.Module):
    """A frozen linear map with a low-rank adapter of rank 4."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(4, inputs) / inputs**0.5)
        self.b = nn.Parameter(0.3 * torch.randn(outputs, 4))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base(x) + x @ self.a.T @ self.b.T
        return found


def quantised(kind: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in SIZES:
        given = nn.Linear(inputs, outputs, bias=False)
        if kind == "4 bits":
            base = bnb.nn.Linear4bit(
                inputs, outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4"
            )
        else:
            base = bnb.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
        base.load_state_dict(given.state_dict())
        layers += [Adapted(base.to("cpu"), inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(SIZES[-1][1], 5))


def dequantised(net: nn.Sequential) -> nn.Module:
    """Return the network in double precision, its bases as ordinary layers."""
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, Adapted):
            outputs, inputs = layer.b.shape[0], layer.a.shape[1]
            base, twin = layer.base, Adapted(nn.Identity(), inputs, outputs)
            twin.load_state_dict({"a": layer.a, "b": layer.b})
            weight = base.weight
            if isinstance(base, bnb.nn.Linear4bit):
                values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            else:
                values = weight.CB.double() * weight.SCB[:, None].double() / 127
            twin.base = nn.Linear(inputs, outputs, bias=False)
            twin.base.weight = nn.Parameter(values.double(), requires_grad=False)
            layers.append(twin)
        elif isinstance(layer, nn.Linear):
            head = nn.Linear(layer.in_features, layer.out_features)
            head.load_state_dict(layer.state_dict())
            layers.append(head)
        else:
            layers.append(nn.Tanh())
    return nn.Sequential(*layers).double()


def data() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(1)

    def batch() -> tuple[Tensor, Tensor]:
        labels = torch.randint(5, (16,), generator=draw)
        return torch.randn(16, 64, generator=draw), labels

    return [batch()], [batch()]


def program(kind: str, method: Any, optimizer: str = "sgd", steps: int = 1, **settings: Any) -> Any:
    torch.manual_seed(0)
    net, weights = quantised(kind), MetaWeightNet(8)
    trained = [p for p in net.parameters() if p.requires_grad]
    noisy, clean = data()
    lower = WeightedClassifier(
        "classifier",
        Config(type=method),
        weights="weights",
        module=net,
        optimizer=torch.optim.SGD(trained, LR)
        if optimizer == "sgd"
        else bnb.optim.AdamW8bit(trained, 1e-2, min_8bit_size=16),
        train_data_loader=noisy,
    )
    upper = WeightLearner(
        "weights",
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.SGD(weights.parameters(), 0.1),
        train_data_loader=clean,
    )
    graph = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    return Engine([upper, lower], EngineConfig(train_iters=steps, **settings), graph)


def hypergradient(engine: Any) -> Tensor:
    found: list[Tensor] = []
    engine.weights.grad_callback = lambda: found.extend(
        p.grad.flatten().double() for p in engine.weights.module.parameters()
    )
    engine.run()
    return torch.cat(found)


def naive(kind: str, method: str) -> Tensor:
    """Return the derivative through the step (``unroll``), or ``-∂²L/∂θ∂w v`` at the parameters
    after the step (``mixed``) or before it (``mixed before``)."""
    engine = program(kind, Reweighting())
    net, weights = dequantised(engine.classifier.module), engine.weights.module.double()
    theta = list(weights.parameters())
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    (noisy,), (clean,) = data()

    def losses(at: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        output = functional_call(net, at, (batch[0].double(),))
        return F.cross_entropy(output, batch[1], reduction="none")

    def gradient(at: dict[str, Tensor]) -> tuple[Tensor, ...]:
        own = losses(at, noisy)
        loss = (weights(own.detach()).squeeze() * own).mean()
        return torch.autograd.grad(loss, list(at.values()), create_graph=True)

    before = {name: p for name, p in net.named_parameters() if name in names}
    stepped = gradient(before)
    after = {n: p - LR * g for (n, p), g in zip(before.items(), stepped, strict=True)}
    if method == "unroll":
        return flat(torch.autograd.grad(losses(after, clean).mean(), theta))
    after = {name: t.detach().requires_grad_() for name, t in after.items()}
    v = torch.autograd.grad(losses(after, clean).mean(), list(after.values()))
    mixed = torch.autograd.grad(gradient(before if method == "mixed before" else after), theta, v)
    return -flat(mixed)


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "oracle", "tolerance"),
    [
        (Reweighting(), "mixed", 2e-4),
        (Reweighting(derivative="one_sided"), "mixed before", 5e-3),
        (Unroll(), "unroll", 2e-5),
        (Unroll(memory="full"), "unroll", 2e-5),
        (Unroll(product="finite_difference"), "unroll", 1e-3),
        # One iteration with a damping far above the Hessian is the identity, divided by it.
        (ConjugateGradient(iterations=1, damping=1e6), "mixed", 2e-5),
    ],
    ids=["central", "one-sided", "unroll", "unroll, kept", "unroll, differences", "cg"],
)
def test_hypergradients_are_those_of_the_dequantised_network(
    kind: str, method: Any, oracle: str, tolerance: float
) -> None:
    found, expected = hypergradient(program(kind, method)), naive(kind, oracle)
    if isinstance(method, ConjugateGradient):
        found = found * 1e6
    assert (found - expected).norm() / expected.norm() < tolerance


def test_forward_mode_says_which_layers_lack_it() -> None:
    engine = program("8 bits", Reweighting(derivative="forward_mode"))
    with pytest.raises(HypergradientError, match="a custom autograd function, which the loss uses"):
        engine.run()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapters_only", [False, True], ids=["whole", "adapters"])
def test_its_optimizer_trains_and_resumes_to_the_bit(
    kind: str, adapters_only: bool, tmp_path: Any
) -> None:
    settings = {"adapters_only": adapters_only}
    whole = program(kind, Reweighting(), "AdamW8bit", steps=4, **settings)
    whole.run()
    half = program(kind, Reweighting(), "AdamW8bit", steps=2, **settings)
    half.run()
    half.save(tmp_path / "half.pt")
    rest = program(kind, Reweighting(), "AdamW8bit", steps=4, **settings)
    rest.load(tmp_path / "half.pt")
    rest.run()
    for name in ("classifier", "weights"):
        pairs = zip(
            getattr(whole, name).module.parameters(),
            getattr(rest, name).module.parameters(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    start = program(kind, Reweighting()).classifier.module
    assert not torch.equal(start[0].a, rest.classifier.module[0].a)


def test_its_optimizer_is_refused_where_steps_are_differentiated() -> None:
    with pytest.raises(ConfigurationError, match="the steps of AdamW8bit cannot be differentiated"):
        program("4 bits", Unroll(), "AdamW8bit")


def test_differences_through_8_bits_are_refused_where_inputs_are_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a card; there is none here, so one is made up."""
    seen = layers.rounds_its_inputs
    monkeypatch.setattr(layers, "rounds_its_inputs", lambda n, _: seen(n, torch.device("cuda")))
    with pytest.raises(
        ConfigurationError, match=r"'0\.base' \(Linear8bitLt\) rounds its inputs.* Use Linear4bit"
    ):
        program("8 bits", Reweighting())
    program("8 bits", Unroll())
    program("4 bits", Reweighting())
