"""Weight networks: their size, their shapes, and how they treat classes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from metaweight import ConfigurationError, Engine, LossError
from metaweight.consistency import UnlabelledFeatures, UnlabelledWeightNet
from metaweight.ensembles import ScoreWeightNet
from metaweight.weighting import (
    ClassAwareWeightNet,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    class_size_groups,
    normalise_weights,
)


def size(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_network_of_the_paper_has_301_parameters() -> None:
    # 1 × 100 weights + 100 biases, 100 × 1 weights + 1 bias.
    assert size(MetaWeightNet(hidden_size=100)) == 100 + 100 + 100 + 1


def test_hidden_layers_add_up() -> None:
    assert size(MetaWeightNet(hidden_size=7, num_layers=3)) == 7 + 7 + 2 * (49 + 7) + 7 + 1


def test_weights_are_the_sigmoid_of_the_perceptron() -> None:
    net = MetaWeightNet(hidden_size=4).double()
    losses = torch.rand(6, dtype=torch.float64)
    first, last = net.layers[0], net.layers[2]
    hidden = torch.relu(losses[:, None] * first.weight[:, 0] + first.bias)
    expected = torch.sigmoid(hidden @ last.weight[0] + last.bias[0])
    torch.testing.assert_close(net(losses), expected, rtol=1e-14, atol=0)


def test_the_exponential_is_a_softmax_once_normalised() -> None:
    torch.default_generator.manual_seed(0)
    losses, classes = torch.rand(6, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    for make in (MetaWeightNet, lambda **given: ClassAwareWeightNet(torch.arange(3), **given)):
        net = make(output="exponential").double()
        assert (net(losses, classes) == 1).all()
        torch.nn.init.normal_(net.layers[-1].weight, std=0.3)
        weights = net(losses, classes)
        with torch.no_grad():
            odds = net(losses, classes)
            net.layers[-1].bias += 15.0
        # The level has no part in normalised weights; bound above, nothing overflows.
        torch.testing.assert_close(
            normalise_weights(net(losses, classes)), 6 * odds.log().softmax(0), rtol=1e-12, atol=0
        )
        (gradient,) = torch.autograd.grad(normalise_weights(weights)[0], net.layers[-1].bias)
        # Sums of six numbers near 1 that cancel.
        assert gradient.abs() < 1e-14
        with torch.no_grad():
            net.layers[-1].bias += 1e6
        assert (net.float()(losses.float(), classes) == math.exp(20.0)).all()


def test_a_weight_network_without_such_an_output_is_refused() -> None:
    message = r"\(output='exp'\) is not one of sigmoid, exponential; choose one of these"
    with pytest.raises(ConfigurationError, match="MetaWeightNet" + message):
        MetaWeightNet(output="exp")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="ClassAwareWeightNet" + message):
        ClassAwareWeightNet(torch.arange(2), output="exp")  # type: ignore[arg-type]


@pytest.mark.parametrize("net", [MetaWeightNet(8), ClassAwareWeightNet(torch.arange(3), 8)])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (1,), (1, 1)])
def test_weights_have_the_shape_of_the_losses(net: Any, shape: tuple[int, ...]) -> None:
    losses = torch.rand(shape)
    classes = torch.randint(3, (shape[0],))
    weights = net(losses, classes)
    assert weights.shape == shape
    assert ((weights > 0) & (weights < 1)).all()
    torch.testing.assert_close(weights.reshape(-1), net(losses.reshape(-1), classes))


@pytest.mark.parametrize("shape", [(), (2, 2), (5, 1, 1), (1, 5)])
def test_losses_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    message = "received losses of shape .* give one loss per sample"
    with pytest.raises(LossError, match=message):
        MetaWeightNet(4)(torch.rand(shape))
    with pytest.raises(LossError, match=message):
        ClassAwareWeightNet(torch.arange(3), 4)(torch.rand(shape), torch.zeros(5).long())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_classes_of_every_integer_type_have_their_own_group(dtype: torch.dtype) -> None:
    net, losses = ClassAwareWeightNet(torch.arange(3), 4), torch.rand(3)
    classes = torch.tensor([1, 0, 1])
    torch.testing.assert_close(net(losses, classes.to(dtype)), net(losses, classes), rtol=0, atol=0)


@pytest.mark.parametrize("given", [[0, -1, 2], [0, 3, 1], [-100, 0, 0]])
def test_classes_out_of_range_are_refused(given: list[int]) -> None:
    net = ClassAwareWeightNet(torch.arange(3), 4)
    message = rf"classes from {min(given)} to {max(given)} for 3 classes; give classes in \[0, 3\)"
    with pytest.raises(LossError, match=message):
        net(torch.rand(3), torch.tensor(given))


@pytest.mark.parametrize("settings", [{"hidden_size": 0}, {"num_layers": 0}])
def test_a_network_without_hidden_units_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="has no hidden unit; both must be at least 1"):
        MetaWeightNet(**settings)


def test_classes_of_one_group_are_weighted_alike_and_others_are_not() -> None:
    net = ClassAwareWeightNet(torch.tensor([0, 1, 0]), hidden_size=16)
    losses = torch.full((3,), 0.7)
    first, second, third = net(losses, torch.arange(3))
    assert first == third
    assert first != second
    assert net.num_groups == 2


def test_the_group_enters_beside_the_loss() -> None:
    groups = torch.tensor([1, 0, 2])
    net = ClassAwareWeightNet(groups, hidden_size=5).double()
    losses, classes = torch.rand(4, dtype=torch.float64), torch.tensor([2, 0, 1, 1])
    joined = torch.cat([losses[:, None], F.one_hot(groups[classes], 3).double()], 1)
    torch.testing.assert_close(net(losses, classes), torch.sigmoid(net.layers(joined))[:, 0])


def test_groups_are_saved_with_the_network() -> None:
    saved = ClassAwareWeightNet(torch.tensor([0, 1, 1])).state_dict()
    net = ClassAwareWeightNet(torch.tensor([1, 0, 0]))
    net.load_state_dict(saved)
    assert net.groups.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "groups",
    [torch.zeros(2, 2).long(), torch.zeros(3), torch.tensor([]).long(), torch.tensor([0, -1])],
)
def test_groups_that_are_no_groups_are_refused(groups: torch.Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"give one integer from 0 per class, such as"):
        ClassAwareWeightNet(groups)


def best_partition(counts: list[int], number: int) -> list[int]:
    """The grouping of least squared distance to group means, over all partitions into intervals."""
    order = sorted(range(len(counts)), key=lambda i: counts[i])
    best, best_groups = float("inf"), []
    for cuts in itertools.combinations(range(1, len(counts)), number - 1):
        edges = [0, *cuts, len(counts)]
        cost, groups = 0.0, [0] * len(counts)
        for group, (a, b) in enumerate(itertools.pairwise(edges)):
            values = [counts[i] for i in order[a:b]]
            mean = sum(values) / len(values)
            cost += sum((v - mean) ** 2 for v in values)
            for i in order[a:b]:
                groups[i] = group
        if cost < best:
            best, best_groups = cost, groups
    return best_groups


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_class_sizes_are_grouped_with_least_squared_distance(seed: int, number: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = (torch.randperm(60, generator=generator)[:8] ** 2 + 1).tolist()
    groups = class_size_groups(torch.tensor(counts), number)
    assert groups.tolist() == best_partition(counts, number)


def test_the_smallest_classes_are_group_zero() -> None:
    counts = torch.tensor([5000, 10, 500, 12, 4900])
    assert class_size_groups(counts, 3).tolist() == [2, 0, 1, 0, 2]


@pytest.mark.filterwarnings("error")
def test_fewer_sizes_than_groups_give_fewer_groups() -> None:
    assert class_size_groups(torch.tensor([7, 7, 9]), 3).tolist() == [0, 0, 1]
    assert class_size_groups(torch.tensor([7, 7]), 3).tolist() == [0, 0]


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["loss", "class", "scores", "unlabelled"])
def test_losses_may_be_of_another_type(own: torch.dtype, given: torch.dtype, kind: str) -> None:
    """Weights are those of the losses in the network's own type, in the wider type of both."""
    torch.default_generator.manual_seed(0)
    losses, classes = torch.tensor([0.5, 2.0, 4.0]), torch.tensor([0, 1, 2])
    net: torch.nn.Module = {
        "loss": MetaWeightNet(4),
        "class": ClassAwareWeightNet(torch.arange(3), 4),
        "scores": ScoreWeightNet(1, 4),
        "unlabelled": UnlabelledWeightNet(4),
    }[kind].to(own)

    def weights(dtype: torch.dtype) -> torch.Tensor:
        values = losses.to(dtype)
        if kind == "unlabelled":
            return net(UnlabelledFeatures(values, values / 8, values / 8, classes, None))
        return net(values, classes)

    found = weights(given)
    assert found.dtype == torch.promote_types(own, given)
    torch.testing.assert_close(found, weights(own).to(found.dtype), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_classifier_of_another_type_learns_with_a_usual_network(dtype: torch.dtype) -> None:
    net, weigh = torch.nn.Linear(4, 3).to(dtype), MetaWeightNet(4)
    batch = (torch.rand(6, 4).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2]))
    lower = WeightedClassifier(
        "classifier",
        weights="weights",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        train_data_loader=[batch],
    )
    upper = WeightLearner(
        "weights",
        classifier="classifier",
        module=weigh,
        optimizer=torch.optim.SGD(weigh.parameters(), 1.0),
        train_data_loader=[batch],
    )
    before = [p.detach().clone() for p in weigh.parameters()]
    Engine.bilevel(upper, lower, train_iters=2, progress=False).run()
    assert not all(torch.equal(p, q) for p, q in zip(weigh.parameters(), before, strict=True))
