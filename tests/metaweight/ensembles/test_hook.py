"""An ensemble that chooses or weighs a problem's samples during a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from metaweight import (
    ConfigurationError,
    DataError,
    Engine,
    EngineConfig,
    ImplicitProblem,
    ReweightedProblem,
)
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.ensembles import EnsembleHook, OnlineEnsemble, SubsetLoader, resample, reweight

N = 20


class Seen(ImplicitProblem):
    """Notes which samples it was given; ``cfg`` is the list."""

    def training_step(self, batch: Any) -> Tensor:
        self.cfg.append(batch[0][:, 0].tolist())
        return F.cross_entropy(self.module(batch[0].float()), batch[1])


class Offset(nn.Module):
    """A member that scores sample i with its row of a table, under :func:`by_table`."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x[:, 0].long()]


def by_table(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs


def joined(batches: list[list[float]]) -> list[float]:
    return [sample for batch in batches for sample in batch]


@pytest.fixture
def data() -> LabelledTensors:
    labels = torch.arange(N) % 2
    # The input of a sample is its position, so that batches say what they hold.
    return LabelledTensors(torch.arange(N)[:, None], labels, labels.clone(), torch.arange(N), 2)


@pytest.fixture
def table() -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(3))


def engine(
    loader: Any, hook: EnsembleHook, steps: int, problem: Any = Seen
) -> tuple[Engine, list[list[float]]]:
    seen: list[list[float]] = []
    net = nn.Linear(1, 2)
    lower = problem(
        "classifier",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=1e-4),
        train_data_loader=loader,
        extra_config=seen,
    )
    return Engine([lower], EngineConfig(train_iters=steps, strategy="cpu"), hooks=[hook]), seen


def hook_on(table: Tensor, **settings: Any) -> EnsembleHook:
    ensemble = OnlineEnsemble([Offset(table)])
    return EnsembleHook(ensemble, "classifier", metric=by_table, low=0.1, high=0.8, **settings)


def make(kind: str, data: LabelledTensors, shuffle: bool) -> Any:
    if kind == "tensors":
        return TensorLoader(data, 5, shuffle=shuffle)
    return DataLoader(TensorDataset(data.inputs, data.labels), 5, shuffle=shuffle)


@pytest.mark.parametrize("kind", ["tensors", "dataloader"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_only_the_middle_of_the_ranking_is_read(kind, shuffle, data, table) -> None:
    hook = hook_on(table)
    program, seen = engine(make(kind, data, shuffle), hook, steps=6)
    program.run()
    kept = resample(table, 0.1, 0.8).sort().values.tolist()
    assert torch.equal(hook.scores, table) and hook.kept.tolist() == kept
    # 14 of 20 samples in batches of 5, 5 and 4, twice.
    epochs = [joined(seen[:3]), joined(seen[3:])]
    assert [len(batch) for batch in seen] == [5, 5, 4] * 2
    for epoch in epochs:
        assert sorted(epoch) == kept
        assert (epoch == kept) is not shuffle


def test_batches_to_score_are_read_as_they_are_said_to_be(data, table) -> None:
    batch = {"scan": data.inputs, "diagnosis": data.labels, "labels": data.labels}
    reading = {"inputs": "scan", "labels": "diagnosis", "logits": lambda outputs: 2 * outputs}
    hook = hook_on(table, data=[batch], **reading)
    program, _ = engine(make("tensors", data, False), hook, steps=1)
    program.run()
    assert torch.equal(hook.scores, 2 * table)
    with pytest.raises(ConfigurationError, match=r"EnsembleHook of .* received labels=1\.5; give"):
        hook_on(table, labels=1.5)


def test_scoring_reads_what_training_drops_and_draws_nothing(data, table) -> None:
    generator = torch.Generator().manual_seed(5)
    dataset = TensorDataset(data.inputs, data.labels)
    loader = DataLoader(dataset, 6, shuffle=True, drop_last=True, generator=generator)
    hook = hook_on(table)
    program, seen = engine(loader, hook, steps=4)
    state = generator.get_state()
    hook.run_start(program)
    assert torch.equal(hook.scores, table)
    assert torch.equal(generator.get_state(), state)
    program.run()
    # 14 samples are kept and two of them dropped.
    assert [len(batch) for batch in seen] == [6] * 4
    assert len(set(joined(seen[:2]))) == 12


def test_indices_stay_those_of_all_samples(data, table) -> None:
    loader = SubsetLoader(TensorLoader(data, 4, with_indices=True), torch.tensor([3, 8, 17, 5, 11]))
    for inputs, labels, indices in loader:
        assert torch.equal(inputs[:, 0], indices) and torch.equal(labels, indices % 2)
    masked = SubsetLoader(TensorLoader(data, 9, with_indices=True), table < 0.5)
    read = torch.cat([indices for _, _, indices in masked])
    assert torch.equal(read.sort().values, (table < 0.5).nonzero().squeeze(1))


def test_every_few_epochs_the_choice_is_made_anew_among_all(data, table) -> None:
    hook = hook_on(table, every=2)
    member = hook.ensemble.ensemble_models[0]
    program, seen = engine(TensorLoader(data, 7), hook, steps=10)
    calls = []
    score = hook.ensemble.score

    def counted(*args: Any, **settings: Any) -> Tensor:
        calls.append(len(seen))
        scores = score(*args, **settings)
        # Easy samples become hard ones for the next time.
        member.table.data.neg_()
        return scores

    hook.ensemble.score = counted  # type: ignore[method-assign]
    program.run()
    # Epochs of two batches of 7; the end of an epoch shows when the next batch is drawn.
    assert calls == [0, 4, 8]
    first, second = (set(resample(s, 0.1, 0.8).tolist()) for s in (table, -table))
    assert first != second
    for epoch, kept in enumerate((first, first, second, second, first)):
        assert set(joined(seen[2 * epoch : 2 * epoch + 2])) == kept


class Weighted(ReweightedProblem):
    """Looks weights up in the hook given as ``cfg[0]``."""

    def sample_losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0].float()), batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        weights = self.cfg[0].weights[batch[2]]
        self.cfg.append((batch[2], weights))
        return weights


@pytest.mark.parametrize("mode", ["linear", "binned"])
def test_weights_are_found_by_index(mode, data, table) -> None:
    hook = hook_on(table, action="reweight", mode=mode)
    loader = TensorLoader(data, 6, with_indices=True)
    program, seen = engine(loader, hook, 8, Weighted)
    seen.append(hook)
    program.run()
    expected = reweight(table, 0.1, 0.8, mode)
    assert torch.equal(hook.weights, expected)
    assert program.classifier.source.loaders == [loader]
    assert len(seen) == 9
    for indices, weights in seen[1:]:
        assert torch.equal(weights, expected[indices])


def test_a_second_run_chooses_among_all_again(data, table) -> None:
    hook = hook_on(table)
    program, _ = engine(TensorLoader(data, 7), hook, 3)
    program.run()
    program.run()
    assert len(hook.scores) == N and len(hook.kept) == 14


def test_a_saved_state_is_taken_up_without_scoring(data, table) -> None:
    hook = hook_on(table, every=2)
    program, _ = engine(TensorLoader(data, 7), hook, 6)
    program.run()
    state = hook.state_dict()
    assert state["epochs"] == 2
    other = hook_on(-table, every=2)
    other.load_state_dict(state)
    program, seen = engine(TensorLoader(data, 7), other, 2)
    program.run()
    assert torch.equal(other.scores, table) and other.epochs == 2
    assert set(joined(seen)) == set(resample(table, 0.1, 0.8).tolist())


def test_any_loader_will_do_that_can_be_made_from_positions(data, table) -> None:
    hook = hook_on(
        table, data=data, make_loader=lambda kept: [(data.inputs[kept], data.labels[kept])]
    )
    program, seen = engine([(data.inputs, data.labels)], hook, 2)
    program.run()
    assert seen == [resample(table, 0.1, 0.8).sort().values.tolist()] * 2


def test_a_loader_of_another_kind_is_refused(data, table) -> None:
    program, _ = engine([(data.inputs, data.labels)], hook_on(table), 1)
    with pytest.raises(DataError, match=r"A list cannot be rebuilt.*make_loader="):
        program.run()
    dataset = TensorDataset(data.inputs, data.labels)
    drawn = DataLoader(dataset, 5, sampler=WeightedRandomSampler([1.0] * N, N))
    program, _ = engine(drawn, hook_on(table), 1)
    with pytest.raises(DataError, match="A DataLoader cannot be rebuilt"):
        program.run()
    short = hook_on(table, data=data.subset(torch.arange(8)))
    program, _ = engine(TensorLoader(data, 5), short, 1)
    with pytest.raises(DataError, match="scores of 8 samples for a loader of 20"):
        program.run()


def test_settings_out_of_range_are_refused(table) -> None:
    with pytest.raises(ConfigurationError, match=r"action='drop'.*'resample' or 'reweight'"):
        hook_on(table, action="drop")
    with pytest.raises(ConfigurationError, match="every=0"):
        hook_on(table, every=0)
    with pytest.raises(ConfigurationError, match="mode='steps'"):
        hook_on(table, mode="steps")
    with pytest.raises(ConfigurationError, match=r"make_loader=.*without data="):
        hook_on(table, make_loader=list)
    with pytest.raises(ConfigurationError, match="0 <= low < high <= 1"):
        EnsembleHook(OnlineEnsemble(), "classifier", low=0.9, high=0.1)


def test_an_unknown_problem_or_an_empty_ensemble_is_refused(data) -> None:
    hook = EnsembleHook(OnlineEnsemble([nn.Linear(1, 2)]), "clasifier")
    program, _ = engine(TensorLoader(data, 5), hook, 1)
    with pytest.raises(ConfigurationError, match=r"problem 'clasifier'.*has 'classifier'"):
        program.run()
    program, _ = engine(TensorLoader(data, 5), EnsembleHook(OnlineEnsemble(), "classifier"), 1)
    with pytest.raises(ConfigurationError, match="ensemble without members"):
        program.run()


def test_a_subset_of_a_subset_has_positions_in_the_whole(data) -> None:
    whole = TensorLoader(data, 4, with_indices=True)
    outer = SubsetLoader(whole, torch.arange(10, 20))
    inner = SubsetLoader(outer, torch.tensor([0, 2, 9]))
    (batch,) = inner
    assert sorted(batch[2].tolist()) == [10, 12, 19] == sorted(batch[0][:, 0].tolist())
    masked = SubsetLoader(outer, torch.arange(10) > 7)
    assert masked.positions.tolist() == [18, 19] and masked.size_of_whole == N


def test_weights_of_a_subset_are_looked_up_by_positions_in_the_whole(data, table) -> None:
    subset = SubsetLoader(TensorLoader(data, 10, with_indices=True), torch.arange(10, 20))
    hook = hook_on(table, action="reweight")
    program, _ = engine(subset, hook, steps=1)
    program.run()
    assert hook.weights.shape == (N,)
    assert not hook.weights[:10].any()
    assert torch.equal(hook.weights[10:], reweight(table[10:], hook.range.low, hook.range.high))
