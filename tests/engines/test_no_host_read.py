"""A training step never waits for the device: no tensor is read on the host.

Under torch's fake tensors any data-dependent host read (``.item()``, ``float(t)``) raises.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.reweighting import Declared, Judge, Plain, network
from support.zoo import over
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    LastLayers,
    Neumann,
    Reweighting,
    Unroll,
    VarianceReduction,
)
from metaweight.averaging import EMAHook
from metaweight.consistency import (
    ICT,
    VAT,
    Erasing,
    FixMatch,
    GaussianNoise,
    MeanTeacher,
    MixMatch,
    PiModel,
    PseudoLabel,
    Ramp,
    RampHook,
    SemiSupervisedProblem,
    learn_sample_weights,
)
from metaweight.weighting import MetaWeightNet, SampleWeights, WeightedClassifier

ONE_SIDED = Reweighting(derivative="one_sided")


@pytest.mark.parametrize(
    "accumulation",
    [2, pytest.param(1, marks=pytest.mark.slow)],
    ids=["accumulation", "every batch"],
)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Declared, "darts"),
        (Declared, ONE_SIDED),
        (Plain, FiniteDifference()),
        (Plain, SAMA()),
        (Plain, Unroll()),
        (Plain, Unroll(memory="full")),
        (Plain, Unroll(memory="auto")),
        (Plain, Unroll(product="finite_difference")),
        (Declared, Unroll(product="finite_difference")),
    ],
    ids=[
        "native",
        "one-sided",
        "darts",
        "sama",
        "unroll",
        "kept",
        "auto",
        "differences",
        "declared differences",
    ],
)
def test_a_step_reads_nothing_back(kind, method, accumulation):
    run(kind, method, accumulation)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(Declared, Reweighting()), (Declared, ONE_SIDED), (Plain, FiniteDifference())],
    ids=["native", "one-sided", "darts"],
)
def test_a_hypergradient_through_the_last_layer_reads_nothing_back(kind, method):
    run(kind, method, 1, hypergradient_parameters=LastLayers(1))


@pytest.mark.parametrize("method", [Neumann(), ConjugateGradient()], ids=["neumann", "cg"])
def test_a_linear_solve_is_looked_at_before_it_is_used(method):
    with pytest.raises(DataDependentOutputException):
        run(Plain, method, 1)


def test_a_corrected_gradient_is_not_read():
    run(Declared, ONE_SIDED, 1, hooks=[VarianceReduction()])


def run(kind, method, accumulation, hooks=(), **settings):
    with FakeTensorMode():
        net, weights = network(dropout=0.5), MetaWeightNet(8)
        data = [(torch.randn(8, 6), torch.randint(0, 4, (8,)))]
        classifier = kind(
            "classifier",
            Config(
                type=method,
                gradient_accumulation=accumulation,
                gradient_clipping=1.0,
                **settings,
            ),
            net,
            torch.optim.Adam(net.parameters()),
            train_data_loader=data,
        )
        judge = Judge(
            "judge", None, weights, torch.optim.Adam(weights.parameters()), train_data_loader=data
        )
        engine = over(judge, classifier, train_iters=2 * accumulation, hooks=hooks)
        engine.run()
    assert judge.count == 2


@pytest.mark.parametrize(
    "method",
    [PseudoLabel(), PiModel(), VAT(), MeanTeacher(), ICT(), MixMatch(), FixMatch()],
    ids=lambda method: type(method).__name__,
)
def test_a_semi_supervised_step_reads_nothing_back(method):
    """Average, noise of its own and an upper problem that weights unlabelled samples included."""

    class RunState(EMAHook):
        """Hands out a network made beforehand: fake tensors cannot be copied deeply."""

        def teacher(self):
            return teacher

    with FakeTensorMode():
        net, teacher = network(dropout=0.5), network(dropout=0.5)
        average = RunState("student", beta=0.9)
        labelled = torch.randn(4, 6), torch.randint(0, 4, (4,))
        student = SemiSupervisedProblem(
            "student",
            method=method,
            teacher=average,
            augment=GaussianNoise(),
            strong_augment=Erasing(0.3),
            module=net,
            optimizer=torch.optim.Adam(net.parameters()),
            train_data_loader=([labelled], [torch.randn(5, 6)]),
        )
        config = EngineConfig(train_iters=2, strategy="cpu")
        ramp = RampHook("student", Ramp(2.0))
        engine = learn_sample_weights(student, [labelled], config, hooks=[ramp, average])
        engine.run()
    assert engine.gate.count == 2


def test_keeping_the_weights_of_samples_reads_nothing_back():
    with FakeTensorMode():
        net, weights = network(dropout=0.5), MetaWeightNet(8)
        data = [(torch.randn(8, 6), torch.randint(0, 4, (8,)), torch.randint(0, 20, (8,)))]
        sgd = torch.optim.SGD(net.parameters(), 0.1)
        classifier = WeightedClassifier(
            "classifier", weights="judge", module=net, optimizer=sgd, train_data_loader=data
        )
        adam = torch.optim.Adam(weights.parameters())
        judge = Judge("judge", None, weights, adam, train_data_loader=[data[0][:2]])
        config = EngineConfig(train_iters=3, strategy="cpu")
        edges = {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}}
        hook = SampleWeights("classifier", 20)
        Engine([judge, classifier], config, edges, hooks=[hook]).run()
        with pytest.raises(DataDependentOutputException):
            hook.counts.tolist()


def test_a_host_read_would_be_noticed():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        F.relu(torch.randn(3)).sum().item()
