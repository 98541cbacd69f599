"""Scores by frozen members: right numbers, right samples, no traces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset

from metaweight import ConfigurationError, DataError, LossError
from metaweight.data import LabelledTensors, RandomCropFlip, TensorLoader
from metaweight.ensembles import OnlineEnsemble, cross_entropy_scores, resample, reweight

N, K, C = 53, 3, 4


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # Batch norm and dropout show whether a member is in evaluation mode.
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, C))


@pytest.fixture
def data() -> LabelledTensors:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, C, (N,), generator=generator)
    # Indices into some source are not positions in the data; scores go by the latter.
    return LabelledTensors(x, y, y.clone(), 1000 + torch.arange(N), C)


@pytest.fixture
def members() -> list[nn.Module]:
    return [net(seed).double() for seed in range(K)]


@pytest.fixture
def ensemble(members: list[nn.Module]) -> OnlineEnsemble:
    ensemble = OnlineEnsemble()
    ensemble.load_pretrain_ensemble_models(members)
    return ensemble


def table(members: list[nn.Module], data: LabelledTensors) -> torch.Tensor:
    """-log of the probability of the given label, one sample at a time."""
    rows = []
    for x, y in zip(data.inputs, data.labels, strict=True):
        logits = [member.eval()(x[None])[0] for member in members]
        rows.append(torch.stack([-(z.exp() / z.exp().sum()).log()[y] for z in logits]))
    return torch.stack(rows).detach()


def test_members_are_frozen_where_they_are(members: list[nn.Module]) -> None:
    ensemble = OnlineEnsemble(members)
    assert all(a is b for a, b in zip(ensemble.ensemble_models, members, strict=True))
    assert not any(module.training for member in members for module in member.modules())
    assert not any(p.requires_grad for member in members for p in member.parameters())


def test_scores_are_those_of_single_samples(ensemble, members, data) -> None:
    expected = table(members, data)
    # Batches change the order of sums in a linear layer: rounding of float64 only.
    torch.testing.assert_close(ensemble.member_scores(data), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ensemble.score(data), expected.sum(1), rtol=1e-12, atol=1e-12)


class Indexed(TensorDataset):
    def __getitem__(self, i):
        return (*super().__getitem__(i), i)


def loaders(data: LabelledTensors):
    plain = TensorDataset(data.inputs, data.labels)
    indexed = Indexed(data.inputs, data.labels)
    stream = ((x, y, i) for x, y, i in DataLoader(indexed, 7, shuffle=True))
    return {
        "tensor_loader": (TensorLoader(data, 10, with_indices=True), None),
        "tensor_loader_without_indices": (TensorLoader(data, 10, drop_last=True), None),
        "dataset": (plain, None),
        "ordered": (DataLoader(plain, 10), None),
        "shuffled": (DataLoader(indexed, 10, shuffle=True), 2),
        "shuffled_last": (DataLoader(indexed, 10, shuffle=True), -1),
        "shuffled_stream": (stream, 2),
        "batches": (
            [(data.inputs[:20], data.labels[:20]), (data.inputs[20:], data.labels[20:])],
            None,
        ),
    }


KINDS = (
    "tensor_loader",
    "tensor_loader_without_indices",
    "dataset",
    "ordered",
    "shuffled",
    "shuffled_last",
    "shuffled_stream",
    "batches",
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_way_of_reading_changes_whose_score_it_is(kind, ensemble, data) -> None:
    loader, index = loaders(data)[kind]
    scores = ensemble.score(loader, index=index, batch_size=11)
    torch.testing.assert_close(scores, ensemble.score(data), rtol=1e-12, atol=1e-12)


def test_any_metric_of_one_number_per_sample_will_do(ensemble, data) -> None:
    def mistakes(logits, labels):
        return (logits.argmax(1) != labels).long()

    scores = ensemble.score(data, metric=mistakes)
    right = sum((m(data.inputs).argmax(1) == data.labels) for m in ensemble.ensemble_models)
    assert torch.equal(scores, (K - right).float())
    losses = ensemble.score(data, metric=nn.CrossEntropyLoss(reduction="none"))
    torch.testing.assert_close(losses, ensemble.score(data), rtol=1e-12, atol=1e-12)


def test_half_logits_are_scored_in_single_precision() -> None:
    logits = torch.randn(6, C, generator=torch.Generator().manual_seed(0)).half()
    labels = torch.arange(6) % C
    scores = cross_entropy_scores(logits, labels)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, F.cross_entropy(logits.float(), labels, reduction="none"))


def test_scoring_leaves_no_trace(data) -> None:
    ensemble = OnlineEnsemble([nn.Sequential(nn.Flatten(), nn.Linear(25, C))])
    images = LabelledTensors(
        torch.rand(N, 1, 5, 5), data.labels, data.clean_labels, data.indices, C
    )
    loader = TensorLoader(images, 10, transform=RandomCropFlip(1), with_indices=True)
    batches = iter(loader)
    next(batches)
    before = {k: v for k, v in loader.state_dict().items() if k != "transform"}
    augmentation = loader.transform.state_dict()["generator"].clone()
    stream = torch.random.get_rng_state()
    ensemble.score(loader)
    ensemble.score(TensorDataset(images.inputs, images.labels))
    ensemble.score(DataLoader(TensorDataset(images.inputs, images.labels), 8))
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert torch.equal(loader.transform.state_dict()["generator"], augmentation)
    after = loader.state_dict()
    assert all(
        torch.equal(torch.as_tensor(after[k]), torch.as_tensor(before[k]))
        for k in ("generator", "epoch_drawn_from", "delivered")
    )
    assert len(list(batches)) == 5
    assert not ensemble.score(loader).requires_grad


class HostReads(TorchDispatchMode):
    """Counts the operations that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        self.number += function.overloadpacket.__name__ in waits
        return function(*args, **(kwargs or {}))


def test_reading_on_the_host_does_not_grow_with_the_number_of_batches(ensemble, data) -> None:
    numbers = []
    for size in (50, 5):
        batches = [
            (data.inputs[i : i + size], data.labels[i : i + size], torch.arange(N)[i : i + size])
            for i in range(0, N, size)
        ]
        with HostReads() as reads:
            ensemble.score(batches, index=2)
        numbers.append(reads.number)
    assert numbers[0] == numbers[1] > 0


def test_a_progress_bar_can_be_shown(ensemble, data, capsys) -> None:
    ensemble.score(data, progress=True)
    assert f"{N}/{N}" in capsys.readouterr().err
    ensemble.score(data)
    assert capsys.readouterr().err == ""


def test_sort_and_resample_keeps_labels_with_their_outputs(ensemble, data) -> None:
    outputs = ensemble.ensemble_models[0](data.inputs).clone().requires_grad_()
    scores = ensemble.score(data)
    kept = resample(scores, 0.1, 0.8)
    rows, labels = ensemble.sort_and_resample((outputs, data.labels), scores.numpy(), N, 0.1, 0.8)
    assert torch.equal(rows, outputs[kept]) and torch.equal(labels, data.labels[kept])
    assert torch.equal(ensemble.sort_and_resample(outputs, scores, outputs.size(0), 0.1, 0.8), rows)
    F.cross_entropy(rows, labels).backward()
    assert outputs.grad[kept].abs().sum(1).gt(0).all()
    assert outputs.grad.abs().sum(1).gt(0).sum() == len(kept)


def test_sort_and_reweight_gives_weights_in_the_order_of_the_rows(ensemble, data) -> None:
    outputs = ensemble.ensemble_models[0](data.inputs)
    scores = ensemble.score(data)
    rows, weights = ensemble.sort_and_reweight(outputs, scores, outputs.size(0), 0.1, 0.8)
    assert torch.equal(weights, reweight(scores, 0.1, 0.8))
    mean = (F.cross_entropy(rows, data.labels, reduction="none") * weights).mean()
    losses = [
        weight * F.cross_entropy(z[None], y[None])
        for weight, z, y in zip(reweight(scores, 0.1, 0.8), outputs, data.labels, strict=True)
    ]
    assert mean.item() == pytest.approx(sum(losses).item() / N, abs=1e-12)
    half = ensemble.sort_and_reweight(outputs.half(), scores, N, mode="binned")[1]
    assert half.dtype == torch.float32 and half.eq(1).all()


def test_rows_and_scores_of_different_numbers_are_refused(ensemble, data) -> None:
    for outputs, scores, n in (
        (torch.zeros(8, C), torch.zeros(N), 8),
        (torch.zeros(8, C), torch.zeros(8), 9),
        ((torch.zeros(8, C), torch.zeros(7)), torch.zeros(8), 8),
    ):
        with pytest.raises(DataError, match=r"rows were announced.*scores\[indices\] for a batch"):
            ensemble.sort_and_resample(outputs, scores, n)
        with pytest.raises(DataError, match="rows were announced"):
            ensemble.sort_and_reweight(outputs, scores, n)


def test_an_ensemble_without_members_is_refused(data) -> None:
    with pytest.raises(ConfigurationError, match=r"without members.*load_pretrain"):
        OnlineEnsemble().score(data)
    with pytest.raises(ConfigurationError, match="types: none"):
        OnlineEnsemble().load_pretrain_ensemble_models([])
    with pytest.raises(ConfigurationError, match="types: Linear, str"):
        OnlineEnsemble([nn.Linear(1, 1), "model0.pth"])


def test_a_shuffling_loader_without_indices_is_refused(ensemble, data) -> None:
    dataset = TensorDataset(data.inputs, data.labels)
    own = BatchSampler(RandomSampler(dataset), 10, False)
    for loader in (DataLoader(dataset, 10, shuffle=True), DataLoader(dataset, batch_sampler=own)):
        with pytest.raises(DataError, match=r"without index=.*give index=2"):
            ensemble.score(loader)
    with pytest.raises(DataError, match="generator was given without index="):
        ensemble.score(batch for batch in DataLoader(dataset, 10))


def test_samples_left_out_are_noticed(ensemble, data) -> None:
    dataset = TensorDataset(data.inputs, data.labels)
    with pytest.raises(DataError, match=r"3 of 53 samples were not read.*sample 50 first"):
        ensemble.score(DataLoader(dataset, 10, drop_last=True))
    part = Subset(Indexed(data.inputs, data.labels), range(3, 20))
    with pytest.raises(DataError, match="span 3 to 19 for 17 samples"):
        ensemble.score(DataLoader(part, 10), index=2)
    with pytest.raises(DataError, match="gave no batch"):
        ensemble.score([])


def test_indices_that_are_none_are_refused(ensemble, data) -> None:
    batch = (data.inputs, data.labels, torch.rand(N))
    with pytest.raises(DataError, match=r"Part 2 of a batch has shape .* one integer index"):
        ensemble.score([batch], index=2)
    with pytest.raises(DataError, match=r"a tuple of 3 parts .* and index=3 \(IndexError"):
        ensemble.score([batch], index=3)


def test_a_metric_that_is_already_a_mean_is_refused(ensemble, data) -> None:
    with pytest.raises(LossError, match=r"returned \(\) for a batch of 53.*reduction='none'"):
        ensemble.score(data, metric=F.cross_entropy)
    with pytest.raises(LossError, match=r"returned \(53, 4\)"):
        ensemble.score(data, metric=lambda outputs, labels: outputs)


def test_a_score_that_is_nan_names_member_and_sample(ensemble, data) -> None:
    broken = data.inputs.clone()
    broken[7] = float("nan")
    with pytest.raises(DataError, match="Member 0 of 3 scores sample 7 with nan"):
        ensemble.score(TensorDataset(broken, data.labels))


def test_a_batch_size_below_one_is_refused(ensemble, data) -> None:
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        ensemble.score(data, batch_size=0)
