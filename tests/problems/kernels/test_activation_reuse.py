"""Repeated passes give what computing everything again gives, with less work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.problems.kernels.activation_reuse import ReusableActivations
from support.reweighting import program
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from metaweight import Config, FiniteDifference, LastLayers, Reweighting
from metaweight.models import ResNet32

CPU = torch.device("cpu")


class Counting(TorchDispatchMode):
    """Counts what is computed, by the names of torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Applied(nn.Module):
    """A module from a function of itself and its input; ``below`` and ``above`` are layers."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(5, 5), nn.Linear(5, 4)
        self.register_buffer("count", torch.zeros(()))
        self.constant = torch.randn(5)
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self, inputs)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3)]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


def convolutions(*, dropout_below: bool = False, dropout_above: bool = False) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    layers += [nn.Dropout(0.5)] if dropout_below else []
    layers += [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    layers += [nn.Dropout(0.5)] if dropout_above else []
    return nn.Sequential(*layers, nn.Linear(64, 4))


def in_place_before(net: Any, x: Tensor) -> Tensor:
    return net.above(net.below(x).relu_().add_(1.0))


def in_place_after_reading(net: Any, x: Tensor) -> Tensor:
    hidden = net.below(x)
    first = net.above(hidden)
    return first + hidden.mul_(2.0)[:, :4]


def branching(net: Any, x: Tensor) -> Tensor:
    hidden = net.below(x)
    hidden = hidden.relu() if hidden.sum() > 0 else hidden.sigmoid()
    scores = net.above(hidden)
    return scores * 2 if scores.sum() > 0 else scores - 1


def counted(net: Any, x: Tensor) -> Tensor:
    net.count.add_(1.0)
    return net.above(net.below(x) * net.count)


def counted_above(net: Any, x: Tensor) -> Tensor:
    net.count.add_(1.0)
    return net.above(net.below(x)) * net.count


IMAGES, TOKENS, ROWS = (torch.rand(6, 3, 8, 8), torch.randint(20, (6, 7)), torch.rand(6, 5))

# A module, its input, which parameters change, and whether the pass can be followed.
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, str, bool]] = {
    "convolutions": (convolutions, IMAGES, "3 4 7", True),
    "ResNet-32": (ResNet32, torch.rand(4, 3, 16, 16), "fc layer3.4 linear", True),
    "dropout above": (lambda: convolutions(dropout_above=True), IMAGES, "3", True),
    "dropout below": (lambda: convolutions(dropout_below=True), IMAGES, "8", False),
    "transformer": (Transformer, TOKENS, "layers.2 head", True),
    "recurrent": (Recurrent, TOKENS, "head", True),
    "in place": (lambda: Applied(in_place_before), ROWS, "above", True),
    "overwritten": (lambda: Applied(in_place_after_reading), ROWS, "above", False),
    "branching": (lambda: Applied(branching), ROWS, "above", True),
    "constant": (
        lambda: Applied(lambda n, x: n.above(n.below(x) * n.constant)),
        ROWS,
        "above",
        False,
    ),
    "counted": (lambda: Applied(counted), ROWS, "above", True),
    "counted above": (lambda: Applied(counted_above), ROWS, "above", False),
    "unseen": (
        lambda: Applied(lambda n, x: n.above(Doubled.apply(n.below(x)))),
        ROWS,
        "above",
        False,
    ),
    "unseen above": (
        lambda: Applied(lambda n, x: Doubled.apply(n.above(n.below(x)))),
        ROWS,
        "above",
        False,
    ),
}


@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_repeats_what_would_be_computed(case: str, graph: bool) -> None:
    torch.default_generator.manual_seed(0)
    make, inputs, prefixes, followable = CASES[case]
    net = make()
    labels = torch.randint(4, (len(inputs),))
    names = tuple(prefixes.split())
    changing = [p for name, p in net.named_parameters() if name.startswith(names)]
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    streams = torch.get_rng_state()

    def put_back() -> None:
        net.load_state_dict(buffers, strict=False)

    def losses() -> Tensor:
        torch.set_rng_state(streams)
        return F.cross_entropy(net(inputs), labels, reduction="none")

    reuse = ReusableActivations(changing, [net], (inputs, labels), CPU)
    with torch.set_grad_enabled(graph):
        first = reuse.record(losses).detach()
    assert reuse.usable == followable
    for length in (0.05, -0.3):
        with torch.no_grad():
            for parameter in changing:
                parameter.add_(length * torch.randn_like(parameter))
            put_back()
            with Counting() as short:
                found = reuse.repeat(losses)
            put_back()
            with Counting() as long:
                expected = losses()
        if graph:
            # With a graph torch may choose other kernels, for an LSTM say, which round otherwise.
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, expected)
        assert not torch.allclose(found, first, rtol=1e-3)
        if followable and case != "branching":
            heavy = ("convolution", "addmm", "mkldnn_rnn_layer", "native_batch_norm", "mm", "bmm")
            assert sum(short.calls[k] for k in heavy) < sum(long.calls[k] for k in heavy)


def sparse_below(net: Any, x: Tensor) -> Tensor:
    return net.above(torch.sparse.mm(net.below(x).relu().to_sparse(), torch.eye(5)))


def nested_below(net: Any, x: Tensor) -> Tensor:
    rows = torch.nested.as_nested_tensor(list(net.below(x).split(3)))
    return net.above(torch.nested.to_padded_tensor(rows, 0.0).flatten(0, 1))


@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.parametrize("function", [sparse_below, nested_below], ids=["sparse", "nested"])
def test_tensors_without_strides_are_computed_in_full(function: Any) -> None:
    net = Applied(function)
    reuse = ReusableActivations(net.above.parameters(), [net], ROWS, CPU)
    first = reuse.record(lambda: net(ROWS).sum(1))
    assert torch.equal(first, net(ROWS).sum(1))
    assert not reuse.usable


def test_batches_of_inference_mode_are_computed_in_full() -> None:
    net = Applied(lambda n, x: n.above(n.below(x)))
    with torch.inference_mode():
        rows = torch.rand(6, 5)
    reuse = ReusableActivations(net.above.parameters(), [net], rows, CPU)
    with torch.no_grad():
        assert torch.equal(reuse.record(lambda: net(rows).sum(1)), net(rows).sum(1))
    assert not reuse.usable


def test_another_way_through_the_network_is_computed_in_full() -> None:
    torch.default_generator.manual_seed(0)
    net, flips = Applied(lambda n, x: n.above(n.below(x)) if len(flips) < 1 else n.above(x)), []
    reuse = ReusableActivations(net.above.parameters(), [net], ROWS, CPU)
    with torch.no_grad():
        reuse.record(lambda: net(ROWS).sum(1))
        flips.append(None)
        assert torch.equal(reuse.repeat(lambda: net(ROWS).sum(1)), net.above(ROWS).sum(1))
    assert not reuse.usable


def test_serves_the_parameters_it_was_recorded_for() -> None:
    net = convolutions()
    reuse = ReusableActivations(net[3].parameters(), [net], IMAGES, CPU)
    assert not reuse.serves(net[3].parameters())
    reuse.record(lambda: net(IMAGES).sum(1))
    assert reuse.serves(net[3].parameters())
    assert not reuse.serves(net.parameters())


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Reweighting(), 2),
        (Reweighting(derivative="one_sided"), 1),
        (FiniteDifference(), 2),
    ],
    ids=["central", "one-sided", "darts"],
)
def test_a_step_computes_the_layers_below_as_rarely_as_it_can(method: Any, passes: int) -> None:
    """The training pass, the upper problem's, and of two displaced ones the first."""
    engine = program(config=Config(type=method, hypergradient_parameters=LastLayers(1)))
    engine.train_step()
    with Counting() as counting:
        engine.train_step()
    below = counting.calls["native_batch_norm"] + counting.calls["_native_batch_norm_legit"]
    assert below == 2 + (passes - 1)
