"""Second and forward derivatives of torch's layers, within the kernels of this package.

The right values are central differences in double precision, of losses and of gradients; relative
1e-6 leaves room for their error. Values are torch's to rounding, 1e-12.
"""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.kernels.elementary import FORWARD, REVERSE
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from support.layer_checks import LayerLoss, check_derivatives
from support.layers import FUNCTIONS, LAYERS, NOT_CASES, Case
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from metaweight.products import hessian_vector_product

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*jit.script.*"),
    pytest.mark.filterwarnings("ignore:.*(Lazy modules|lazy).*:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*'same' padding.*:UserWarning"),
]

MENDED = (
    *("weight_norm", "EmbeddingBag", "Hardsigmoid", "GroupNorm", "CTCLoss", "MultiMarginLoss"),
    *("MultiLabelMarginLoss", "Embedding", "Embedding.held", "SiLU", "Mish", "HuberLoss"),
    *("SoftMarginLoss", "GRU", "spectral_norm.held"),
)
PUBLIC = [
    name
    for name, kind in vars(nn).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and not name.startswith("_")
]


def cases(table: dict[str, list[Case]], names: object = None) -> list[object]:
    return [
        pytest.param(case, name.endswith("held"), id=f"{name}-{number}")
        for name, listed in table.items()
        if names is None or name in names
        for number, case in enumerate(listed)
    ]


@pytest.mark.parametrize(("case", "held"), cases(LAYERS, MENDED))
def test_mended_layers_have_their_values_and_right_derivatives(case: Case, held: bool) -> None:
    check_derivatives(case, held=held)
    check_value(case)


@pytest.mark.parametrize(("case", "held"), cases(FUNCTIONS))
def test_mended_functions_have_their_values_and_right_derivatives(case: Case, held: bool) -> None:
    check_derivatives(case, held=held)
    check_value(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "held"), cases(LAYERS, [name for name in LAYERS if name not in MENDED])
)
def test_all_layers_have_right_derivatives(case: Case, held: bool) -> None:
    check_derivatives(case, held=held)


def test_every_public_layer_of_torch_is_in_the_table() -> None:
    listed = {name.split(".")[0] for name in LAYERS} | NOT_CASES
    missing = set(PUBLIC) - listed
    assert not missing, f"add cases of {sorted(missing)} to support/layers.py"


def check_value(case: Case) -> None:
    loss = LayerLoss(case)
    own = loss(loss.leaves)
    with differentiable_twice(), forward_ad.dual_level():
        torch.testing.assert_close(loss(loss.leaves), own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    "loss", [F.multi_margin_loss, F.multilabel_margin_loss, F.soft_margin_loss, F.huber_loss]
)
def test_reductions_are_those_of_torch(loss: object, reduction: str) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = {
        F.multi_margin_loss: torch.tensor([0, 2, 1]),
        F.multilabel_margin_loss: torch.tensor([[0, 2, -1, 1], [3, -1, 0, 0], [1, 2, 3, 0]]),
    }.get(loss, x.roll(1, 0).sign())
    instead = {**REVERSE, **FORWARD}[loss]
    torch.testing.assert_close(instead(x, y, reduction=reduction), loss(x, y, reduction=reduction))
    if loss is not F.huber_loss:
        old = {"reduce": False} if reduction == "none" else {"size_average": reduction == "mean"}
        expected = loss(x, y, reduction=reduction)
        torch.testing.assert_close(instead(x, y, **old), expected)


def test_alignments_without_probability_have_an_infinite_loss_or_none() -> None:
    given = torch.randn(2, 2, 4, dtype=torch.float64).log_softmax(-1)
    where = (torch.tensor([[1, 1], [2, 3]]), torch.tensor([2, 2]), torch.tensor([2, 2]))
    own = REVERSE[F.ctc_loss]
    for zero in (False, True):
        settings = {"reduction": "none", "zero_infinity": zero}
        expected = F.ctc_loss(given, *where, **settings)
        torch.testing.assert_close(own(given, *where, **settings), expected)


@pytest.mark.parametrize("method", ["exact", "forward_over_reverse"])
def test_a_product_of_a_function_is_right_where_torch_is_wrong(method: str) -> None:
    """Of ``½ |g v / |v||²`` with ``g = 1``, constant in ``v``: the Hessian by ``v`` is 0."""
    v = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    g = torch.ones(1, 1, dtype=torch.float64)

    def loss(params: list[torch.Tensor]) -> torch.Tensor:
        return torch._weight_norm(params[0], g, 0).square().sum() / 2

    (found,) = hessian_vector_product(
        loss, [v], [torch.tensor([[1.0, 2.0]]).double()], method=method
    )
    assert found.abs().max() < 1e-15
