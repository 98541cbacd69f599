"""Every layer of ``torch.nn``, on a small input, for tests of second and forward derivatives.

Of the cases named ``held``, the gradient takes something that depends on parameters as a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Case = tuple[Callable[[], nn.Module], tuple[Any, ...]]
"""Makes a layer, and its inputs; a tuple of integers stands for random numbers of that shape."""


class Tall(tuple):
    """A shape of random numbers between 0.1 and 0.9."""


def whole(*values: Any) -> Tensor:
    return torch.tensor(values)


TWO = (2, 3, 4)
IMAGE = (2, 4, 5, 5)
VOLUME = (2, 4, 4, 4, 4)
LABELS = whole(0, 2, 1)
SIGNS = whole(1, -1, 1)

SPATIAL = {1: (2, 4, 6), 2: IMAGE, 3: VOLUME}
EVEN = {**SPATIAL, 2: (2, 4, 4, 4)}


def each(name: str, *args: Any, shapes: Any = SPATIAL, **kwargs: Any) -> dict[str, list[Case]]:
    """Return the cases of the layer of one, two and three dimensions."""
    return {
        f"{name}{n}d": [(lambda n=n: getattr(nn, f"{name}{n}d")(*args, **kwargs), (shapes[n],))]
        for n in shapes
    }


def pads(name: str, *more: Any) -> dict[str, list[Case]]:
    return each(name, 1, *more)


def activation(name: str, *args: Any, **kwargs: Any) -> dict[str, list[Case]]:
    return {name: [(lambda: getattr(nn, name)(*args, **kwargs), ((3, 4),))]}


class Unpooled(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dimensions}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


class Padded(nn.Module):
    """A recurrent network on packed sequences."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, whole(4, 2), batch_first=True)
        return self.net(packed)[0].data


class Aligned(nn.Module):
    """The loss of log probabilities, for which torch's gradient of it holds."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.loss = nn.CTCLoss(**kwargs)

    def forward(self, logits: Tensor, *args: Tensor) -> Tensor:
        return self.loss(logits.log_softmax(-1), *args)


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Called(nn.Module):
    """A layer called with keywords."""

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.net, self.kwargs = net, kwargs

    def forward(self, *args: Any) -> Any:
        return self.net(*args, **self.kwargs)


def old_weight_norm(net: nn.Module, dim: Any = 0) -> nn.Module:
    return nn.utils.weight_norm(net, dim=dim)


def new_weight_norm(net: nn.Module, dim: Any = 0) -> nn.Module:
    return parametrizations.weight_norm(net, dim=dim)


LSTM = {"input_size": 3, "hidden_size": 4, "batch_first": True}
WIDTHS = {"d_model": 4, "nhead": 2, "dim_feedforward": 5, "batch_first": True}

LAYERS: dict[str, list[Case]] = {
    **each("AdaptiveAvgPool", 2),
    **each("AdaptiveMaxPool", 2),
    "AdaptiveLogSoftmaxWithLoss": [
        (lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], div_value=2.0), ((3, 4), LABELS + 1)),
    ],
    "AlphaDropout": [(lambda: nn.AlphaDropout(0.5), ((3, 4),))],
    **each("AvgPool", 2),
    "BCELoss": [(nn.BCELoss, (Tall((3, 4)), Tall((3, 4))))],
    "BCEWithLogitsLoss": [
        (nn.BCEWithLogitsLoss, ((3, 4), Tall((3, 4)))),
        (lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(4).double()), ((3, 4), Tall((3, 4)))),
    ],
    **each("BatchNorm", 4),
    "BatchNorm1d.eval": [(lambda: nn.BatchNorm1d(4).eval(), ((3, 4),))],
    "BatchNorm1d.plain": [(lambda: nn.BatchNorm1d(4, affine=False), ((3, 4),))],
    "Bilinear": [(lambda: nn.Bilinear(4, 3, 2), ((3, 4), (3, 3)))],
    **activation("CELU", 0.7),
    "CTCLoss": [
        (Aligned, ((5, 2, 4), whole([1, 2], [3, 3]), whole(5, 4), whole(2, 2))),
        (Aligned, ((5, 2, 4), whole(1, 2, 3), whole(5, 3), whole(2, 1))),
        (lambda: Aligned(blank=3), ((5, 2, 4), whole([1, 2], [0, 1]), whole(5, 5), whole(2, 0))),
        (lambda: Aligned(reduction="sum"), ((5, 4), whole(1, 2), whole(5), whole(2))),
    ],
    "ChannelShuffle": [(lambda: nn.ChannelShuffle(2), (IMAGE,))],
    **pads("CircularPad"),
    **pads("ConstantPad", 0.5),
    **each("Conv", 4, 2, 2),
    **each("ConvTranspose", 4, 2, 2),
    "Conv2d.grouped": [(lambda: nn.Conv2d(4, 4, 3, groups=2, padding="same"), (IMAGE,))],
    "Conv2d.modes": [
        (lambda m=m: nn.Conv2d(4, 2, 3, padding=1, padding_mode=m), (IMAGE,))
        for m in ("reflect", "replicate", "circular")
    ],
    "CosineEmbeddingLoss": [(nn.CosineEmbeddingLoss, ((3, 4), (3, 4), SIGNS))],
    "CosineSimilarity": [(nn.CosineSimilarity, ((3, 4), (3, 4)))],
    "CrossEntropyLoss": [
        (nn.CrossEntropyLoss, ((3, 4), LABELS)),
        (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), ((3, 4), LABELS)),
        (lambda: nn.CrossEntropyLoss(torch.rand(4).double()), ((3, 4), LABELS)),
        (nn.CrossEntropyLoss, ((3, 4), Tall((3, 4)))),
    ],
    "Dropout": [(nn.Dropout, ((3, 4),))],
    **each("Dropout"),
    **activation("ELU"),
    "Embedding": [
        (lambda: nn.Embedding(5, 3), (whole([1, 2], [1, 4]),)),
        (lambda: nn.Embedding(5, 3, sparse=True), (whole([1, 2], [1, 4]),)),
    ],
    "Embedding.held": [
        (lambda: nn.Embedding(5, 3, padding_idx=1), (whole([1, 2], [1, 4]),)),
        (lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), (whole([1, 2], [1, 4]),)),
        (lambda: nn.Embedding(5, 3, max_norm=0.5), (whole([1, 2], [1, 4]),)),
    ],
    "EmbeddingBag": [
        (lambda m=m: nn.EmbeddingBag(5, 3, mode=m), (whole([1, 2], [1, 4]),))
        for m in ("sum", "mean", "max")
    ]
    + [
        (lambda: nn.EmbeddingBag(5, 3, mode="sum"), (whole(1, 2, 3), whole(0, 2), (3,))),
        (lambda: nn.EmbeddingBag(5, 3, mode="sum", sparse=True), (whole(1, 2, 3), whole(0, 2))),
        (lambda: nn.EmbeddingBag(5, 3, padding_idx=1), (whole(1, 2, 3), whole(0, 2))),
    ],
    "FeatureAlphaDropout": [(nn.FeatureAlphaDropout, (IMAGE,))],
    "Flatten": [(nn.Flatten, (IMAGE,))],
    "Fold": [(lambda: nn.Fold((4, 5), 2), ((2, 8, 12),))],
    "FractionalMaxPool2d": [(lambda: nn.FractionalMaxPool2d(2, 3), (IMAGE,))],
    "FractionalMaxPool3d": [(lambda: nn.FractionalMaxPool3d(2, 2), (VOLUME,))],
    "GELU": [(nn.GELU, ((3, 4),)), (lambda: nn.GELU("tanh"), ((3, 4),))],
    **activation("GLU"),
    "GRU": [
        (lambda: nn.GRU(**LSTM), ((2, 4, 3),)),
        (lambda: nn.GRU(**LSTM, num_layers=2, bidirectional=True, dropout=0.5), ((2, 4, 3),)),
        (lambda: Padded(nn.GRU(**LSTM)), ((2, 4, 3),)),
    ],
    "GRUCell": [(lambda: nn.GRUCell(3, 4), ((2, 3), (2, 4)))],
    "GaussianNLLLoss": [(nn.GaussianNLLLoss, ((3, 4), (3, 4), Tall((3, 4))))],
    "GroupNorm": [
        (lambda: nn.GroupNorm(2, 4), (IMAGE,)),
        (lambda: nn.GroupNorm(2, 4, affine=False), (IMAGE,)),
    ],
    **activation("Hardshrink"),
    **activation("Hardsigmoid"),
    **activation("Hardswish"),
    **activation("Hardtanh"),
    "HingeEmbeddingLoss": [(nn.HingeEmbeddingLoss, ((3, 4), whole([1, -1, 1, -1])))],
    "HuberLoss": [(nn.HuberLoss, ((3, 4), (3, 4)))],
    "Identity": [(nn.Identity, ((3, 4),))],
    **each("InstanceNorm", 4, affine=True),
    "InstanceNorm2d.running": [(lambda: nn.InstanceNorm2d(4, track_running_stats=True), (IMAGE,))],
    "KLDivLoss": [
        (lambda: nn.KLDivLoss(reduction="batchmean"), ((3, 4), Tall((3, 4)))),
        (lambda: nn.KLDivLoss(reduction="sum", log_target=True), ((3, 4), (3, 4))),
    ],
    "L1Loss": [(nn.L1Loss, ((3, 4), (3, 4)))],
    **each("LPPool", 2, 2),
    "LPPool2d.3": [(lambda: nn.LPPool2d(3, 2), (Tall(IMAGE),))],
    "LSTM": [
        (lambda: nn.LSTM(**LSTM), ((2, 4, 3),)),
        (lambda: nn.LSTM(**LSTM, num_layers=2, bidirectional=True, dropout=0.5), ((2, 4, 3),)),
        (lambda: nn.LSTM(**LSTM, proj_size=2), ((2, 4, 3),)),
        (lambda: Padded(nn.LSTM(**LSTM)), ((2, 4, 3),)),
    ],
    "LSTMCell": [(lambda: nn.LSTMCell(3, 4), ((2, 3), ((2, 4), (2, 4))))],
    "LayerNorm": [
        (lambda: nn.LayerNorm(4), ((3, 4),)),
        (lambda: nn.LayerNorm(4, bias=False), ((3, 4),)),
        (lambda: nn.LayerNorm(4, elementwise_affine=False), ((3, 4),)),
        (lambda: nn.LayerNorm((3, 4)), ((2, 3, 4),)),
    ],
    **{f"LazyBatchNorm{n}d": [(getattr(nn, f"LazyBatchNorm{n}d"), (SPATIAL[n],))] for n in SPATIAL},
    **each("LazyConv", 2, 2),
    **each("LazyConvTranspose", 2, 2),
    **{
        f"LazyInstanceNorm{n}d": [(getattr(nn, f"LazyInstanceNorm{n}d"), (SPATIAL[n],))]
        for n in SPATIAL
    },
    "LazyLinear": [(lambda: nn.LazyLinear(3), ((3, 4),))],
    **activation("LeakyReLU"),
    "Linear": [(lambda: nn.Linear(4, 2), ((3, 4),)), (lambda: nn.Linear(4, 2), (TWO,))],
    "LinearCrossEntropyLoss": [(lambda: nn.LinearCrossEntropyLoss(4, 3), ((3, 4), LABELS))],
    "LocalResponseNorm": [(lambda: nn.LocalResponseNorm(2), (IMAGE,))],
    **activation("LogSigmoid"),
    **activation("LogSoftmax", dim=1),
    "MSELoss": [(nn.MSELoss, ((3, 4), (3, 4)))],
    "MarginRankingLoss": [(nn.MarginRankingLoss, ((3,), (3,), SIGNS))],
    **each("MaxPool", 2),
    **{f"MaxUnpool{n}d": [(lambda n=n: Unpooled(n), (EVEN[n],))] for n in SPATIAL},
    **activation("Mish"),
    "MultiLabelMarginLoss": [
        (nn.MultiLabelMarginLoss, ((2, 4), whole([0, 2, -1, 1], [3, -1, 0, 0])))
    ],
    "MultiLabelSoftMarginLoss": [(nn.MultiLabelSoftMarginLoss, ((3, 4), Tall((3, 4))))],
    "MultiMarginLoss": [
        (nn.MultiMarginLoss, ((3, 4), LABELS)),
        (lambda: nn.MultiMarginLoss(p=2), ((3, 4), LABELS)),
    ],
    "MultiheadAttention": [
        (lambda: nn.MultiheadAttention(4, 2, batch_first=True), (TWO, TWO, TWO)),
        (lambda: nn.MultiheadAttention(4, 2, batch_first=True).eval(), (TWO, TWO, TWO)),
        (
            lambda: Called(nn.MultiheadAttention(4, 2, batch_first=True), need_weights=False),
            (TWO, TWO, TWO),
        ),
        (
            lambda: Called(
                nn.MultiheadAttention(4, 2, batch_first=True), need_weights=False
            ).eval(),
            (TWO, TWO, TWO),
        ),
        (
            lambda: nn.MultiheadAttention(
                4, 2, kdim=3, vdim=3, add_bias_kv=True, add_zero_attn=True
            ),
            ((3, 2, 4), (3, 2, 3), (3, 2, 3)),
        ),
    ],
    "NLLLoss": [(nn.NLLLoss, ((3, 4), LABELS))],
    "NLLLoss2d": [(nn.NLLLoss, ((2, 4, 3), whole([0, 1, 2], [3, 2, 1])))],
    "PReLU": [
        (nn.PReLU, ((3, 4),)),
        (lambda: nn.PReLU(4), ((3, 4),)),
        (lambda: nn.PReLU(4), (IMAGE,)),
    ],
    "PairwiseDistance": [
        (nn.PairwiseDistance, ((3, 4), (3, 4))),
        (lambda: nn.PairwiseDistance(3.0), ((3, 4), (3, 4))),
    ],
    "PixelShuffle": [(lambda: nn.PixelShuffle(2), (IMAGE,))],
    "PixelUnshuffle": [(lambda: nn.PixelUnshuffle(2), ((2, 1, 4, 4),))],
    "PoissonNLLLoss": [
        (nn.PoissonNLLLoss, ((3, 4), Tall((3, 4)))),
        (lambda: nn.PoissonNLLLoss(log_input=False, full=True), (Tall((3, 4)), Tall((3, 4)))),
    ],
    "RMSNorm": [
        (lambda: nn.RMSNorm(4), ((3, 4),)),
        (lambda: nn.RMSNorm(4, elementwise_affine=False), ((3, 4),)),
    ],
    "RNN": [
        (lambda: nn.RNN(**LSTM), ((2, 4, 3),)),
        (lambda: nn.RNN(**LSTM, nonlinearity="relu", bidirectional=True), ((2, 4, 3),)),
    ],
    "RNNCell": [(lambda: nn.RNNCell(3, 4), ((2, 3), (2, 4)))],
    "RReLU": [(nn.RReLU, ((3, 4),)), (lambda: nn.RReLU().eval(), ((3, 4),))],
    **activation("ReLU"),
    **activation("ReLU6"),
    **pads("ReflectionPad"),
    **pads("ReplicationPad"),
    **activation("SELU"),
    **activation("SiLU"),
    **activation("Sigmoid"),
    "SmoothL1Loss": [(nn.SmoothL1Loss, ((3, 4), (3, 4)))],
    "SoftMarginLoss": [(nn.SoftMarginLoss, ((3, 4), whole([1, -1, 1, -1])))],
    **activation("Softmax", dim=1),
    "Softmax2d": [(nn.Softmax2d, (IMAGE,))],
    **activation("Softmin", dim=1),
    **activation("Softplus"),
    **activation("Softshrink"),
    **activation("Softsign"),
    **activation("Tanh"),
    **activation("Tanhshrink"),
    **activation("Threshold", 0.1, 0.5),
    "Transformer": [
        (
            lambda: nn.Transformer(
                4,
                2,
                num_encoder_layers=1,
                num_decoder_layers=1,
                dim_feedforward=5,
                batch_first=True,
            ),
            (TWO, TWO),
        )
    ],
    "TransformerDecoder": [
        (lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**WIDTHS), 2), (TWO, TWO))
    ],
    "TransformerDecoderLayer": [
        (lambda: nn.TransformerDecoderLayer(**WIDTHS), (TWO, TWO)),
        (lambda: nn.TransformerDecoderLayer(**WIDTHS).eval(), (TWO, TWO)),
    ],
    "TransformerEncoder": [
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**WIDTHS), 2), (TWO,)),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**WIDTHS), 2).eval(), (TWO,)),
    ],
    "TransformerEncoderLayer": [
        (lambda: nn.TransformerEncoderLayer(**WIDTHS), (TWO,)),
        (lambda: nn.TransformerEncoderLayer(**WIDTHS).eval(), (TWO,)),
        (lambda: nn.TransformerEncoderLayer(**WIDTHS, activation="gelu", norm_first=True), (TWO,)),
    ],
    "TripletMarginLoss": [(nn.TripletMarginLoss, ((3, 4), (3, 4), (3, 4)))],
    "TripletMarginWithDistanceLoss": [(nn.TripletMarginWithDistanceLoss, ((3, 4), (3, 4), (3, 4)))],
    "Unflatten": [(lambda: nn.Unflatten(1, (2, 2)), ((3, 4),))],
    "Unfold": [(lambda: nn.Unfold(2), (IMAGE,))],
    "Upsample": [
        (lambda m=m: nn.Upsample(scale_factor=2, mode=m), (IMAGE,))
        for m in ("nearest", "bilinear", "bicubic", "nearest-exact", "area")
    ]
    + [
        (lambda: nn.Upsample(scale_factor=2, mode="linear"), ((2, 3, 4),)),
        (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (VOLUME,)),
    ],
    "UpsamplingBilinear2d": [(lambda: nn.UpsamplingBilinear2d(7), (IMAGE,))],
    "UpsamplingNearest2d": [(lambda: nn.UpsamplingNearest2d(7), (IMAGE,))],
    **pads("ZeroPad"),
    # Weights computed from parameters.
    "weight_norm": [
        (lambda dim=dim, make=make: make(nn.Linear(4, 3), dim), ((3, 4),))
        for dim in (0, 1, None)
        for make in (old_weight_norm, new_weight_norm)
    ]
    + [
        (lambda: new_weight_norm(nn.Conv2d(4, 2, 2)), (IMAGE,)),
        (lambda: old_weight_norm(nn.Conv2d(4, 2, 2)), (IMAGE,)),
    ],
    "spectral_norm.held": [
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), ((3, 4),)),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), ((3, 4),)),
    ],
    "spectral_norm": [
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)).eval(), ((3, 4),)),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), ((3, 4),)),
    ],
    "orthogonal": [
        (lambda m=m: parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=m), ((3, 4),))
        for m in ("matrix_exp", "cayley", "householder")
    ],
}

NOT_CASES = {
    # Containers and base classes, which compute nothing themselves.
    *("Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"),
    *("RNNBase", "RNNCellBase", "Sequential"),
    # Of several devices or processes.
    *("DataParallel", "SyncBatchNorm"),
    # Refused by name where it would be differentiated twice.
    "CrossMapLRN2d",
}

SQUARE = (3, 3)
FUNCTIONS: dict[str, list[Case]] = {
    name: [(lambda f=f: Function(f), shapes) for f, shapes in cases]
    for name, cases in {
        "solve": [
            (torch.linalg.solve, (SQUARE, SQUARE)),
            (torch.linalg.solve, (SQUARE, (3,))),
            (lambda a, b: torch.linalg.solve(a, b, left=False), (SQUARE, SQUARE)),
            (torch.linalg.solve, ((2, 3, 3), (2, 3, 2))),
        ],
        "det": [(torch.det, (SQUARE,)), (torch.linalg.det, ((2, 3, 3),)), (Tensor.det, (SQUARE,))],
        "slogdet": [
            (lambda a: torch.linalg.slogdet(a)[1], (SQUARE,)),
            (lambda a: torch.slogdet(a).logabsdet, ((2, 3, 3),)),
            (lambda a: torch.logdet(a @ a.mT), (SQUARE,)),
        ],
        "inv": [(torch.linalg.inv, (SQUARE,))],
        "cholesky_inverse": [
            (lambda a: torch.cholesky_inverse(torch.linalg.cholesky(a @ a.mT + 1)), (SQUARE,))
        ],
        "cdist": [
            (lambda a, b, p=p: torch.cdist(a, b, p=p), ((3, 4), (5, 4)))
            for p in (1.0, 2.0, 3.0, float("inf"))
        ],
        "pdist": [(lambda a, p=p: nn.functional.pdist(a, p), ((4, 3),)) for p in (1.0, 2.0, 3.0)],
        "logit": [(torch.logit, (Tall(SQUARE),)), (Tensor.logit, (Tall(SQUARE),))],
        "layer_norm": [(lambda a, b: nn.functional.layer_norm(a, (3,), None, b), (SQUARE, (3,)))],
        "conv_tbc": [(nn.functional.conv_tbc, ((5, 2, 3), (3, 3, 2), (2,)))],
        "in place": [
            (lambda a, f=f: f(a * 1, inplace=True).square() + a, (SQUARE,))
            for f in (
                *(nn.functional.silu, nn.functional.mish, nn.functional.hardsigmoid),
                *(nn.functional.hardswish, nn.functional.relu6, nn.functional.elu),
            )
        ]
        + [(lambda a: nn.functional.rrelu(a * 1, training=True, inplace=True), (SQUARE,))],
    }.items()
}
