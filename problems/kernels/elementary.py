"""Operations composed of others, where torch's own derivatives of them are missing or wrong.

Torch differentiates the fused backward pass of ``weight_norm`` to wrong numbers and refuses that of
others, such as ``hardsigmoid``. Composed of operations whose derivatives are right, the same values
have right derivatives of every order, in reverse and forward mode.

``torch.linalg.solve``, ``det`` and ``slogdet`` have right second derivatives in reverse mode, and
wrong ones in forward-over-reverse mode: their backward pass reads a factorisation without tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .ctc_loss import ctc_loss
from .embedding import embedding, embedding_bag
from .margin_losses import multi_margin_loss, multilabel_margin_loss, reduced

Function = Callable[..., Any]


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return ``g v / ||v||``, with the norm of each slice along ``dim``; of all entries for -1."""
    kept = None if dim == -1 else dim % v.ndim
    others = [d for d in range(v.ndim) if d != kept]
    norm: Tensor = torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1)
    return v * (g / norm)


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return torch's layer norm; torch's second derivative fails for a bias without weight."""
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def _without_cudnn(recurrent: Function) -> Function:
    """Compute a recurrent network without cuDNN, whose backward pass has no derivative."""

    def computed(*args: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return recurrent(*args)

    return computed


def _in_place(compute: Function) -> Function:
    """Give an activation torch's argument ``inplace``."""

    def activation(input: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        return (
            input.copy_(compute(input.clone(), *args, **kwargs))
            if inplace
            else compute(input, *args, **kwargs)
        )

    return activation


def _hardsigmoid(input: Tensor) -> Tensor:
    return F.relu6(input + 3.0) / 6.0


def _silu(input: Tensor) -> Tensor:
    return input * input.sigmoid()


def _mish(input: Tensor) -> Tensor:
    return input * F.softplus(input).tanh()


def _rrelu(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.rrelu(input, *args, **kwargs)


def _huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    error = input - target
    size = error.abs()
    losses = torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))
    return reduced(losses if weight is None else losses * weight, reduction)


def _soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    return reduced(-F.logsigmoid(target * input), reduction, size_average, reduce)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    output = ((grouped - mean) * (variance + eps).rsqrt()).reshape(input.shape)
    shape = (-1, *[1] * (input.ndim - 2))
    output = output if weight is None else output * weight.view(shape)
    return output if bias is None else output + bias.view(shape)


def _logit(input: Tensor, eps: float | None = None) -> Tensor:
    inside = input if eps is None else input.clamp(eps, 1.0 - eps)
    return inside.log() - (-inside).log1p()


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    del compute_mode
    found: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)
    return found


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    found: Tensor = torch.linalg.vector_norm(input[first] - input[second], p, dim=-1)
    return found


def _conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    return F.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(
        2, 0, 1
    )


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    is_vector = B.ndim == 1 or B.shape == A.shape[:-1]
    right = B.unsqueeze(-1) if is_vector else B
    found: Tensor = torch.linalg.lu_solve(*torch.linalg.lu_factor(A), right, left=left)
    return found.squeeze(-1) if is_vector else found


def _slogdet(A: Tensor) -> Any:
    diagonal = torch.linalg.lu_factor(A).LU.diagonal(dim1=-2, dim2=-1)
    constant = torch.linalg.slogdet(A.detach())
    return type(constant)((constant.sign, diagonal.abs().log().sum(-1)))


def _logdet(input: Tensor) -> Tensor:
    sign, value = _slogdet(input)
    return torch.where(sign < 0, torch.nan, value)


def _det(A: Tensor) -> Tensor:
    factor = torch.linalg.lu_factor(A)
    rows = torch.arange(1, A.shape[-1] + 1, device=A.device)
    sign = 1 - 2 * ((factor.pivots != rows).sum(-1) % 2)
    found: Tensor = factor.LU.diagonal(dim1=-2, dim2=-1).prod(-1) * sign
    return found


def _cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    return torch.cholesky_solve(eye, L, upper)


def _pack_padded_sequence(
    input: Tensor, lengths: Tensor, batch_first: bool = False
) -> tuple[Tensor, Tensor]:
    steps = torch.arange(int(lengths.max()))
    present = steps.unsqueeze(1) < lengths.to("cpu").unsqueeze(0)
    time, sample = present.nonzero(as_tuple=True)
    rows = (input if not batch_first else input.transpose(0, 1))[time, sample]
    return rows, present.sum(1)


def _scatter_reduce(compute: Function) -> Function:
    """Refuse products in forward mode, whose forward-over-reverse derivative torch has wrong."""

    def computed(
        input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, **rest: Any
    ) -> Any:
        if reduce == "prod":
            raise NotImplementedError("Trying to use forward AD with scatter_reduce of 'prod'")
        return compute(input, dim, index, src, reduce, **rest)

    return computed


REVERSE: Mapping[Function, Function] = {
    torch._weight_norm: weight_norm,
    F.layer_norm: layer_norm,
    F.hardsigmoid: _in_place(_hardsigmoid),
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    F.ctc_loss: ctc_loss,
    torch.ctc_loss: ctc_loss,
    **{each: _without_cudnn(each) for each in (torch.lstm, torch.gru)},
    **{each: _without_cudnn(each) for each in (torch.rnn_tanh, torch.rnn_relu)},
}
"""Operations without right derivatives of the second order in any mode."""

FORWARD: Mapping[Function, Function] = {
    F.silu: _in_place(_silu),
    F.mish: _in_place(_mish),
    F.rrelu: _in_place(_rrelu),
    F.huber_loss: _huber_loss,
    F.soft_margin_loss: _soft_margin_loss,
    F.group_norm: _group_norm,
    torch.logit: _logit,
    Tensor.logit: _logit,
    torch.special.logit: _logit,
    torch.cdist: _cdist,
    F.pdist: _pdist,
    F.conv_tbc: _conv_tbc,
    torch.linalg.solve: _solve,
    torch.linalg.slogdet: _slogdet,
    torch.slogdet: _slogdet,
    Tensor.slogdet: _slogdet,
    torch.logdet: _logdet,
    Tensor.logdet: _logdet,
    torch.linalg.det: _det,
    torch.det: _det,
    Tensor.det: _det,
    torch.cholesky_inverse: _cholesky_inverse,
    Tensor.cholesky_inverse: _cholesky_inverse,
    torch._pack_padded_sequence: _pack_padded_sequence,
    torch.scatter_reduce: _scatter_reduce(torch.scatter_reduce),
    Tensor.scatter_reduce: _scatter_reduce(Tensor.scatter_reduce),
    Tensor.scatter_reduce_: _scatter_reduce(Tensor.scatter_reduce_),
}
"""Operations without right derivatives in forward mode."""
