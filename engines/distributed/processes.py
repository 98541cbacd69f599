"""The processes that run one program together, by ``torch.distributed``."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.base.reduction import Reduction
from metaweight.problems.base.shards import is_sharded
from torch import Tensor, nn

from .same_program import require_same_module
from .sync_batch_norm import synchronise

T = TypeVar("T")


class Processes(Reduction):
    """Communication between the processes of an engine; this class is for a single process.

    Every process must make the same calls in the same order.
    """

    def own_module(self, problem: str, module: nn.Module) -> None:
        self.require_known_shards(problem, module)

    def require_known_shards(self, problem: str, module: nn.Module) -> None:
        """Refuse a module with parameters that are sharded in a way that is not this one's.

        Raises:
            ConfigurationError: Naming the first of them.
        """
        for name, parameter in module.named_parameters():
            if is_sharded(parameter) and not self.shards_alike(parameter):
                raise ConfigurationError(
                    f"{name!r} in the module of problem {problem!r} is a "
                    f"{type(parameter).__name__}, which has been sharded over processes, as by "
                    "torch's fully_shard. Give the module as it was before; "
                    "EngineConfig(strategy='fsdp') shards what the problem's shard_modules() "
                    "returns."
                )

    def shards_alike(self, parameter: Tensor) -> bool:
        """Return whether a sharded parameter is as these processes would shard it."""
        del parameter
        return False

    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Overwrite tensors in place with their values in process ``source``."""

    def from_first(self, make: Callable[[], T]) -> T:
        """Call ``make`` in process 0; return its result, or raise its error, in all processes."""
        return make()

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, by rank."""
        return [value]

    def stacked(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, equal in shape, stacked by rank; does not
        synchronise with the device."""
        return tensor.detach()[None]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an empty tensor to load shards into: on the host, whole."""
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    def require_audit(self, lower: Problem) -> None:
        """Check that a lower problem's hypergradient can be compared with exact derivatives.

        Raises:
            ConfigurationError: When these cannot be computed.
        """
        del lower

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all processes."""
        return number

    def mean_stats(self, stats: Mapping[str, Any]) -> dict[str, Any]:
        """Average numbers and tensors over the processes that have them; text stays as it is."""
        return dict(stats)


class SeveralProcesses(Processes):
    """Several processes of the default process group.

    Args:
        device: The device of this process.
        sync_batch_norm: Whether every batch norm takes the statistics of all processes.

    Attributes:
        reductions: Number of all-reduces for means.
        bytes: Number of bytes reduced by them.
    """

    def __init__(self, device: torch.device, *, sync_batch_norm: bool = False) -> None:
        self._sync_batch_norm = sync_batch_norm
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.reductions = 0
        self.bytes = 0
        # Small messages go through the host if possible, which avoids synchronising.
        on_host = "gloo" in dist.get_backend_config() or "mpi" in dist.get_backend_config()
        self._messages = torch.device("cpu") if on_host else device
        self.seed = self.from_first(torch.initial_seed)

    def own_module(self, problem: str, module: nn.Module) -> None:
        super().own_module(problem, module)
        require_same_module(self, problem, module)
        synchronise(problem, module, everywhere=self._sync_batch_norm)
        self.broadcast([*module.parameters(), *module.buffers()])

    @torch.no_grad()
    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        found = [t.detach() for t in tensors]
        for places in by_kind(found):
            flat = torch.cat([found[i].reshape(-1) for i in places])
            self.reductions += 1
            self.bytes += flat.numel() * flat.itemsize
            dist.all_reduce(flat)
            flat.div_(self.world)
            pieces = flat.split([found[i].numel() for i in places])  # type: ignore[no-untyped-call]
            for i, piece in zip(places, pieces, strict=True):
                found[i] = _with_strides_of(found[i], piece.view(found[i].shape))
        return found

    @torch.no_grad()
    def average_gradients(self, problem: Problem) -> None:
        parameters = list(problem.trainable_parameters())
        missing = [i for i, p in enumerate(parameters) if p.grad is None]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if any(g.is_sparse for g in gradients):
            raise ConfigurationError(
                f"Problem {problem.name!r} has sparse gradients, which processes cannot average; "
                "build its embeddings with sparse=False."
            )
        present = gradients[0].new_ones(len(parameters))
        if missing:
            present[missing] = 0.0
        statistics = list(running_statistics(problem.module))
        means = self.mean([present, *gradients, *statistics])
        # Reading synchronises, so it is only done for gradients that this process lacks.
        lacking = {i for i in missing if float(means[0][i]) == 0.0}
        averaged = means[1 : 1 + len(parameters)]
        for i, (parameter, gradient) in enumerate(zip(parameters, averaged, strict=True)):
            parameter.grad = None if i in lacking else gradient
        _overwrite(statistics, means[1 + len(parameters) :])

    @torch.no_grad()
    def average_statistics(self, module: nn.Module) -> None:
        """Average the running statistics of the module's batch norms over processes."""
        statistics = list(running_statistics(module))
        _overwrite(statistics, self.mean(statistics))

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        given = [t.detach() for t in tensors]
        for places in by_kind(given):
            flat = torch.cat([given[i].reshape(-1) for i in places])
            dist.broadcast(flat, src=source)
            if source == self.rank:
                continue
            pieces = flat.split([given[i].numel() for i in places])  # type: ignore[no-untyped-call]
            for i, piece in zip(places, pieces, strict=True):
                given[i].copy_(piece.view(given[i].shape))

    def from_first(self, make: Callable[[], T]) -> T:
        message: list[Any] = [None, None]
        if self.rank == 0:
            try:
                message[0] = _packed(make())
            except Exception as error:
                message[1] = error
        dist.broadcast_object_list(message, src=0, device=self._messages)
        if message[1] is not None:
            raise message[1]
        made: T = _unpacked(message[0])
        return made

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, _packed(value))
        return [_unpacked(packed) for packed in found]

    @torch.no_grad()
    def stacked(self, tensor: Tensor) -> Tensor:
        # Each process fills its own row, so the sum holds all rows.
        rows = tensor.new_zeros((self.world, *tensor.shape))
        rows[self.rank] = tensor
        dist.all_reduce(rows)
        return rows

    def largest(self, number: int) -> int:
        message = torch.tensor(number, device=self._messages)
        dist.all_reduce(message, op=dist.ReduceOp.MAX)
        return int(message)

    def mean_stats(self, stats: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: _sendable(value) for name, value in stats.items()}
        everyone = self.gather(own)
        names = dict.fromkeys(name for each in everyone for name in each)
        return {
            name: _mean_of([each[name] for each in everyone if name in each], stats.get(name))
            for name in names
        }


def running_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Yield running means and variances of the module's normalisation layers, also of those that
    are scripted or written by hand with torch's names."""
    for layer in module.modules():
        for name, buffer in layer.named_buffers(recurse=False):
            if name in ("running_mean", "running_var") and buffer.is_floating_point():
                yield buffer


def _overwrite(statistics: Sequence[Tensor], means: Sequence[Tensor]) -> None:
    for statistic, mean in zip(statistics, means, strict=True):
        # Batch norm itself does not record this write for autograd either.
        statistic.data.copy_(mean)


def _packed(value: Any) -> bytes:
    # Plain pickle cannot restore some tensors, such as those read from a file.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> Any:
    # The sender is a process of the same program, so its data are trusted.
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=False)


def by_kind(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the positions of tensors that can be concatenated, in the same order everywhere."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(i)
    return list(kinds.values())


def _with_strides_of(reference: Tensor, value: Tensor) -> Tensor:
    if reference.is_contiguous():
        return value
    return torch.empty_like(reference).copy_(value)


def _sendable(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _mean_of(values: list[Any], own: Any) -> Any:
    """Return the mean of numbers or tensors, in the type of this process's value."""
    first = values[0] if own is None else own
    if isinstance(first, Tensor):
        wide = [torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values]
        mean = torch.stack(wide).mean(0)
        kept = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        return mean.to(dtype=kept, device=first.device)
    try:
        return sum(float(v) for v in values) / len(values)
    except (TypeError, ValueError):
        return first
