"""The semi-supervised level in a run: what it leaves alone, and batches at the edge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.semi_supervised import (
    CLASSES,
    FEATURES,
    labelled_batch,
    network,
    noisy,
    run,
    state,
    student,
    unlabelled_batch,
)
from torch import Tensor, nn

from metaweight import Config, DataError, Engine, EngineConfig, LossError
from metaweight.averaging import EMAHook
from metaweight.consistency import (
    ICT,
    VAT,
    ConsistencyMethod,
    FixMatch,
    MeanTeacher,
    MixMatch,
    Network,
    PiModel,
    PseudoLabel,
    Ramp,
    RampHook,
    SemiSupervisedBatch,
    SemiSupervisedProblem,
    frozen_statistics,
    learn_weight,
)

METHODS: dict[str, ConsistencyMethod] = {
    "PseudoLabel": PseudoLabel(0.4),
    "PiModel": PiModel(),
    "VAT": VAT(),
    "MeanTeacher": MeanTeacher(),
    "ICT": ICT(),
    "MixMatch": MixMatch(),
    "FixMatch": FixMatch(0.4),
}
every_method = pytest.mark.parametrize("name", METHODS)


def test_frozen_statistics_by_hand() -> None:
    norm = nn.BatchNorm1d(1)
    norm(torch.tensor([[1.0], [3.0]]))
    before = state(norm)
    assert [float(norm.running_mean), float(norm.running_var)] == pytest.approx([0.2, 1.1])  # type: ignore[arg-type]
    with frozen_statistics(norm):
        output = norm(torch.tensor([[10.0], [30.0]]))
        output.sum().backward()
    torch.testing.assert_close(
        output.flatten().detach(), torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0
    )
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
    with pytest.raises(RuntimeError, match="meant"), frozen_statistics(norm):
        norm(torch.tensor([[10.0], [30.0]]))
        raise RuntimeError("meant")
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm2d(3), (2, 3, 4, 4)),
        (nn.BatchNorm3d(3), (2, 3, 2, 2, 2)),
        (nn.SyncBatchNorm(3), (4, 3)),
        (nn.InstanceNorm2d(3, track_running_stats=True), (2, 3, 4, 4)),
        (nn.LazyBatchNorm1d(), (4, 3)),
    ],
)
def test_every_normalisation_layer_keeps_its_statistics(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    layer(x)
    before = state(layer)
    with frozen_statistics(layer):
        first = layer(2 * x + 1)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    torch.testing.assert_close(first, layer(2 * x + 1))


@every_method
def test_a_consistency_pass_leaves_no_trace(name: str) -> None:
    """With weight 0, buffers, random streams and parameters are those of supervision alone."""
    runs = []
    for method in (METHODS[name], PseudoLabel(1.0, another_view=False)):
        torch.default_generator.manual_seed(3)
        net = network(dropout=0.3)
        problem = student(method, net=net, consistency_weight=0.0)
        run(problem, 3)
        runs.append((state(net), torch.random.get_rng_state(), problem))
    (ours, stream, problem), (plain, plain_stream, _) = runs
    if problem.average is not None:
        assert all(p.grad is None for p in problem.average.teacher().parameters())
    if name == "MixMatch":
        return
    assert torch.equal(stream, plain_stream)
    for key, value in plain.items():
        assert torch.equal(ours[key], value), key


@every_method
def test_the_same_seed_gives_the_same_run_and_another_one_another(name: str) -> None:
    ends = []
    for seed in (0, 0, 1):
        torch.default_generator.manual_seed(0)
        net = network(dropout=0.3)
        run(student(METHODS[name], net=net, seed=seed), 3)
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@every_method
def test_a_loss_is_a_function_of_its_batch(name: str) -> None:
    problem = student(METHODS[name], net=network(dropout=0.3))
    run(problem, 1)
    losses = []
    for _ in range(2):
        torch.default_generator.manual_seed(5)
        with frozen_statistics(problem.module):
            losses.append(problem.training_step(problem.cur_batch)["loss"].detach())
    assert torch.equal(*losses)


@every_method
def test_gradients_of_others_are_left_alone(name: str) -> None:
    problem = student(METHODS[name])
    engine = learn_weight(
        problem,
        [labelled_batch()],
        EngineConfig(train_iters=1, strategy="cpu"),
        hooks=[] if problem.average is None else [problem.average],
    )
    engine.run()
    teacher = None if problem.average is None else problem.average.teacher()
    modules = [engine.gate.module, problem.module, *([teacher] if teacher is not None else [])]
    before = [torch.full_like(p, 7.0) for m in modules for p in m.parameters()]
    for p, g in zip([p for m in modules for p in m.parameters()], before, strict=True):
        p.grad = g.clone()
    problem.training_step(problem.get_batch())
    after = [p.grad for m in modules for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if b is not None)
    assert all(g is not None for g in after)


def step_once(method: ConsistencyMethod, x: Tensor, y: Tensor, u: Tensor, **more: Any) -> Any:
    problem = student(method, loader=([(x, y)], [u]), **more)
    run(problem, 1)
    torch.default_generator.manual_seed(0)
    return problem, problem.training_step(problem.cur_batch)


@every_method
def test_without_labelled_samples_their_term_is_zero(name: str) -> None:
    x, y = labelled_batch()
    problem, parts = step_once(METHODS[name], x[:0], y[:0], unlabelled_batch())
    assert parts["labelled"] == 0
    assert all(p.isfinite().all() for p in problem.module.parameters())


@every_method
def test_unlabelled_marks_count_as_no_label(name: str) -> None:
    x, y = labelled_batch()
    problem, parts = step_once(METHODS[name], x, torch.full_like(y, -1), unlabelled_batch())
    assert parts["labelled"] == 0
    assert all(p.isfinite().all() for p in problem.module.parameters())


@every_method
def test_without_unlabelled_samples_it_is_supervision(name: str) -> None:
    x, y = labelled_batch()
    _, parts = step_once(METHODS[name], x, y, unlabelled_batch()[:0], lr=0.0)
    assert set(parts) == {"loss", "labelled"}
    assert torch.equal(parts["loss"].detach(), parts["labelled"])


@every_method
def test_one_sample_of_each(name: str) -> None:
    x, y = labelled_batch(1)
    net = network(batch_norm=False)
    problem, parts = step_once(METHODS[name], x, y, unlabelled_batch(1), net=net)
    assert parts["loss"].isfinite()
    assert all(p.isfinite().all() for p in problem.module.parameters())


@pytest.mark.parametrize("method", [PseudoLabel(1.0), FixMatch(1.0)])
def test_all_rejected_is_no_loss_and_no_gradient(method: ConsistencyMethod) -> None:
    x, y = labelled_batch()
    problem, parts = step_once(method, x[:0], y[:0], unlabelled_batch())
    assert parts["accept rate"] == 0
    assert parts["consistency"] == 0
    gradients = torch.autograd.grad(parts["loss"], list(problem.module.parameters()))
    assert not any(g.any() for g in gradients)


@every_method
@pytest.mark.parametrize("which", ["labelled", "unlabelled"])
def test_numbers_that_are_not_finite_are_named(name: str, which: str) -> None:
    (x, y), u = labelled_batch(), unlabelled_batch()
    (x if which == "labelled" else u)[0, 0] = float("nan")
    with pytest.raises(
        LossError, match="problem 'student' returned numbers that are not finite in"
    ):
        run(student(METHODS[name], loader=([(x, y)], [u])), 1)


@every_method
def test_half_precision(name: str) -> None:
    (x, y), u = labelled_batch(), unlabelled_batch()
    net = network().float()
    loader = ([(x.float(), y)], [u.float()])
    config = Config(precision="bf16")
    problem = student(METHODS[name], net=net, loader=loader, config=config)
    run(problem, 2)
    loss = problem.training_step(problem.cur_batch)["loss"]
    assert loss.dtype == torch.float32
    assert all(p.isfinite().all() for p in net.parameters())


@every_method
@pytest.mark.parametrize("shape", [(FEATURES,), (1, 6, 6), (2, 7)])
def test_inputs_of_any_rank(name: str, shape: tuple[int, ...]) -> None:
    """Vectors, images and sequences."""
    torch.default_generator.manual_seed(0)
    layers: dict[int, list[nn.Module]] = {
        1: [nn.Linear(FEATURES, 4)],
        3: [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
        2: [nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveMaxPool1d(1)],
    }
    net = nn.Sequential(*layers[len(shape)], nn.Flatten(), nn.Linear(4, CLASSES))
    loader = ([(torch.randn(4, *shape), torch.arange(4) % CLASSES)], [torch.randn(5, *shape)])
    problem = student(METHODS[name], net=net, loader=loader)
    run(problem, 2)
    assert all(p.isfinite().all() for p in net.parameters())


class Tokens(nn.Module):
    """Sequences of tokens to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.mixer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.last = nn.Linear(4, CLASSES)

    def classify(self, embedded: Tensor) -> Tensor:
        logits: Tensor = self.last(self.mixer(embedded).mean(1))
        return logits


@every_method
def test_tokens_by_their_embeddings(name: str) -> None:
    torch.default_generator.manual_seed(0)
    net = Tokens()
    by_embedding = Network(
        embed=lambda model, x: model.embedding(x), classify=lambda model, e: model.classify(e)
    )
    labelled = torch.randint(10, (4, 5)), torch.arange(4) % CLASSES
    problem = student(
        METHODS[name],
        net=net,
        loader=([labelled], [torch.randint(10, (6, 5))]),
        network=by_embedding,
        augment=None,
        strong_augment=lambda tokens: tokens.flip(1),
    )
    before = state(net)
    run(problem, 2)
    assert all(p.isfinite().all() for p in net.parameters())
    assert not torch.equal(before["embedding.weight"], net.embedding.weight)


def test_terms_are_divided_as_asked() -> None:
    (x, y), u = labelled_batch(4), unlabelled_batch(6)
    y[0] = -1
    found = {}
    for normalise in ("part", "batch"):
        _, found[normalise] = step_once(
            PiModel(), x, y, u, normalise=normalise, lr=0.0, consistency_weight=3.0
        )
    part, whole = found["part"], found["batch"]
    torch.testing.assert_close(whole["labelled"], part["labelled"] * 3 / 10)
    torch.testing.assert_close(whole["consistency"], part["consistency"] * 6 / 10)
    loss = part["labelled"] + 3 * part["consistency"]
    torch.testing.assert_close(part["loss"].detach(), loss)


def test_labelled_inputs_can_be_asked_about_too() -> None:
    (x, y), u = labelled_batch(), unlabelled_batch()
    problem = student(
        PiModel(),
        loader=([(x, y)], [u]),
        include_labelled=True,
        augment=None,
        lr=0.0,
        net=network(dropout=0.5, batch_norm=False),
    )
    seen: list[Any] = []

    class Spy(PiModel):
        def __call__(self, step: Any) -> Any:
            seen.append(step.unlabelled)
            return super().__call__(step)

    problem.method = Spy()
    run(problem, 1)
    assert torch.equal(seen[0], torch.cat([x, u]))


def test_loaders_of_different_lengths_go_round_on_their_own() -> None:
    labelled = [labelled_batch(4, seed) for seed in range(2)]
    unlabelled = [(unlabelled_batch(5, seed), torch.zeros(5)) for seed in range(3)]
    problem = student(PiModel(), loader=(labelled, unlabelled))
    seen: list[SemiSupervisedBatch] = []

    class Spy(RampHook):
        def after_step(self, engine: Any, problem: Any, result: Any) -> None:
            seen.append(problem.cur_batch)

    run(problem, 6, Spy("student", Ramp(shape="constant")))
    assert [torch.equal(b.inputs, labelled[i % 2][0]) for i, b in enumerate(seen)] == [True] * 6
    assert [torch.equal(b.unlabelled, unlabelled[i % 3][0]) for i, b in enumerate(seen)] == (
        [True] * 6
    )
    assert len({b.seed for b in seen}) == 6


def test_a_pi_model_without_noise_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="came out alike"):
        run(student(PiModel(), augment=None, net=network(batch_norm=False)), 2)


def test_student_and_teacher_are_both_evaluated() -> None:
    found: dict[str, Tensor] = {}
    hook = EMAHook("student", beta=0.5)
    problem = student(MeanTeacher(), teacher=hook)

    class Validating(Engine):
        def validation(self) -> Any:
            x = unlabelled_batch()
            found["student"] = problem.module(x)
            with hook.applied():
                found["teacher"] = problem.module(x)
            return {}

    engine = Validating(
        [problem],
        EngineConfig(train_iters=3, valid_step=3, strategy="cpu"),
        {"u2l": {}, "l2u": {}},
        hooks=[hook],
    )
    engine.run()
    assert not torch.allclose(found["student"], found["teacher"])


def test_a_run_goes_on_where_it_was_saved() -> None:
    def make() -> SemiSupervisedProblem:
        return student(PiModel(), net=network())

    torch.default_generator.manual_seed(0)
    whole = make()
    run(whole, 2)
    saved = copy.deepcopy(whole.state_dict())
    next_seed = whole.get_batch().seed
    again = make()
    run(again, 0)
    again.load_state_dict(saved)
    assert again.get_batch().seed == next_seed
    for key, value in saved["module"].items():
        assert torch.equal(again.module.state_dict()[key], value)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([labelled_batch()], DataError, r"1 loader\(s\); give a pair"),
        (
            ([labelled_batch()[0]], [unlabelled_batch()]),
            DataError,
            r"first loader, .*give batches \(inputs, labels\)",
        ),
        (([], [unlabelled_batch()]), DataError, "student"),
        (([labelled_batch()], []), DataError, "student"),
        (
            ([(labelled_batch()[0], torch.full((4,), 7))], [unlabelled_batch()]),
            LossError,
            "7 for logits of 3 classes",
        ),
    ],
)
def test_loaders_are_checked(loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(student(PiModel(), loader=loader), 1)


def test_networks_that_drop_the_batch_are_refused() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(FEATURES, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).squeeze()

    with pytest.raises(LossError, match=r"shape \(3,\) for 1 samples.*also for a batch of one"):
        step_once(
            MeanTeacher(),
            torch.zeros(0, FEATURES).double(),
            torch.zeros(0).long(),
            noisy(unlabelled_batch(1)),
            net=Squeezing(),
        )
