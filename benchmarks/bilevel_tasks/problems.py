"""Three stochastic bilevel problems, in double precision.

``min_θ h(θ) = F(w*(θ), θ)`` with ``w*(θ) = argmin_w G(w, θ)``, where ``F`` and ``G`` are means over
samples, of which a contender sees batches. Data and starting points are the same for all; what
differs between seeds is the order of the batches.

The problems are those of benchmark_bilevel (Dagréou, Ablin, Vaiter, Moreau, NeurIPS 2022,
arXiv:2201.13409), on data that need no download.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Batch = tuple[Tensor, ...]
Loss = Callable[[Tensor, Tensor, Batch], Tensor]

BATCH = 64
CLASSES = 10
RIDGE = 0.2
"""Times ``|w|²`` in hyper-cleaning."""


@dataclass(frozen=True)
class Problem:
    """A bilevel problem, with one vector of parameters a level.

    Attributes:
        name: Its name.
        lower_loss: ``G(w, θ, batch)``, the mean over a batch.
        upper_loss: ``F(w, θ, batch)``.
        lower: The samples of ``G``, along the first dimension of each tensor.
        upper: The samples of ``F``.
        w: Where ``w`` starts.
        theta: Where ``θ`` starts.
        direct: Whether ``F`` depends on ``θ`` other than through ``w``.
        lower_steps: Step sizes of ``w``, and of the linear system, that all contenders try.
        upper_steps: Step sizes of ``θ`` that all contenders try.
        bound: Bound on each ``|θ_j|`` in the search for the minimum of ``h``, whose infimum may be
            at infinity.
        stretch: Returns, given ``θ``, about the lengths of ``w_j`` that change ``G`` alike.
    """

    name: str
    lower_loss: Loss
    upper_loss: Loss
    lower: Batch
    upper: Batch
    w: Tensor
    theta: Tensor
    direct: bool
    lower_steps: Sequence[float]
    upper_steps: Sequence[float]
    bound: float
    stretch: Callable[[Tensor], Tensor | float] = lambda theta: 1.0

    def batches(self, level: str) -> list[Batch]:
        """Return the batches of ``"lower"`` or ``"upper"``, a fixed division of its samples."""
        parts = self.lower if level == "lower" else self.upper
        return list(zip(*(part.split(BATCH) for part in parts), strict=True))


def quadratic_lower(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """Mean of ``½ (a_i·w)² + (c_i·θ)(d_i·w) + l_i·w``."""
    a, c, d, linear = batch
    along = 0.5 * (a @ w).square() + (c @ theta) * (d @ w) + linear @ w
    return along.mean()


def quadratic_upper(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The same with other samples, and ``½ (b_i·θ)² + m_i·θ``."""
    b, direct, *rest = batch
    return (
        quadratic_lower(w, theta, tuple(rest))
        + (0.5 * (b @ theta).square() + direct @ theta).mean()
    )


def quadratic(
    samples: int = 1024, size: int = 100, inputs: int = 10, least: float = 0.1
) -> Problem:
    """Return a quadratic problem of the law that benchmark_bilevel draws from.

    A Hessian is the mean of outer products of correlated normal vectors, whose spectrum goes from
    ``least`` to 1, with a 0 more in that of ``θ``; mixed derivatives are means of outer products of
    two maps of one normal vector, with singular values of 0.1. Samples are kept as the factors of
    these products. ``G`` has no terms of ``θ`` alone here, which do not change ``w*``. The draw is
    repeated until ``h`` is convex.
    """
    generator = torch.Generator().manual_seed(0)
    while True:
        lower = _quadratic_samples(samples, size, inputs, least, generator)
        upper = _quadratic_samples(samples, size, inputs, least, generator)
        b = normal(generator, samples, inputs) @ _root(inputs, least, generator, flat=True)
        upper = (b, normal(generator, samples, inputs), *upper)
        if _least_curvature(lower, upper) > 0:
            break
    return Problem(
        name="quadratic",
        lower_loss=quadratic_lower,
        upper_loss=quadratic_upper,
        lower=lower,
        upper=upper,
        w=torch.zeros(size, dtype=torch.float64),
        theta=torch.full((inputs,), -2.0, dtype=torch.float64),
        direct=True,
        lower_steps=(0.1, 0.3),
        upper_steps=(0.1, 0.3, 1.0),
        bound=float("inf"),
    )


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _root(size: int, least: float, generator: torch.Generator, *, flat: bool = False) -> Tensor:
    """Return the root of a matrix with a spectrum even in the logarithm; ``flat``: and one 0."""
    rotation, _ = torch.linalg.qr(normal(generator, size, size))
    spectrum = torch.logspace(
        torch.tensor(least).log10().item(), 0, size - flat, dtype=torch.float64
    )
    spectrum = torch.cat([spectrum.new_zeros(int(flat)), spectrum])
    return rotation @ torch.diag(spectrum.sqrt()) @ rotation.T


def _quadratic_samples(
    samples: int, size: int, inputs: int, least: float, generator: torch.Generator
) -> Batch:
    a = normal(generator, samples, size) @ _root(size, least, generator)
    left, _ = torch.linalg.qr(normal(generator, inputs, inputs))
    right, _ = torch.linalg.qr(normal(generator, size, size))
    x = normal(generator, samples, size)
    c = 0.1 * x[:, :inputs] @ left.T
    return a, c, x @ right.T, normal(generator, samples, size)


def _least_curvature(lower: Batch, upper: Batch) -> float:
    """Return the least eigenvalue of the Hessian of ``h``."""
    (a, c, d, _), (b, _, e, g, k, _) = lower, upper
    response = -torch.linalg.solve(a.T @ a, d.T @ c)
    mixed = g.T @ k @ response / len(k)
    hessian = response.T @ (e.T @ e) @ response / len(e) + b.T @ b / len(b) + mixed + mixed.T
    return float(torch.linalg.eigvalsh(hessian)[0])


def logistic_lower(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The logistic loss and a penalty for each feature, ``½ Σ_j exp(θ_j) w_j²``."""
    return logistic_upper(w, theta, batch) + 0.5 * (theta.exp() * w.square()).sum()


def logistic_upper(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The logistic loss, of labels -1 and 1."""
    del theta
    x, y = batch
    return F.softplus(-y * (x @ w)).mean()


def logistic(samples: int = 2048, features: int = 22) -> Problem:
    """Return the choice of a regulariser for each feature, on data of the shape of ijcnn1.

    All features say something about the labels: the best penalty of one that does not is infinite,
    where steps of ``w`` of any length diverge in the end.
    """
    generator = torch.Generator().manual_seed(1)
    x = 0.5 * normal(generator, 2 * samples, features)
    true = torch.linspace(0.3, 3, features, dtype=torch.float64)
    score = x @ true + 2 * normal(generator, 2 * samples)
    y = torch.where(score > 0, 1.0, -1.0).double()
    return Problem(
        name="logistic",
        lower_loss=logistic_lower,
        upper_loss=logistic_upper,
        lower=(x[:samples], y[:samples]),
        upper=(x[samples:], y[samples:]),
        w=normal(generator, features),
        theta=torch.rand(features, generator=generator, dtype=torch.float64).log(),
        direct=False,
        lower_steps=(0.3, 1.0),
        upper_steps=(3.0, 20.0, 100.0),
        bound=12.0,
        stretch=lambda theta: (1 + theta.exp()).rsqrt(),
    )


def cleaning_lower(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy weighted by ``sigmoid(θ_i)``, and ``0.2 |w|²``."""
    x, y, index = batch
    losses = F.cross_entropy(x @ w.view(-1, CLASSES), y, reduction="none")
    return (theta[index].sigmoid() * losses).mean() + RIDGE * w.square().sum()


def cleaning_upper(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy."""
    del theta
    x, y = batch
    return F.cross_entropy(x @ w.view(-1, CLASSES), y)


def cleaning(samples: int = 768, clean: int = 512, noise: float = 0.5) -> Problem:
    """Return hyper-cleaning: a weight for each of scikit-learn's digits, of which half were given a
    random label."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(2)
    pixels, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(pixels), generator=generator)[: samples + clean]
    x, y = pixels[order].double(), labels[order]
    spread = x[:samples].std(0)
    x = (x - x[:samples].mean(0)) / torch.where(spread > 0, spread, 1.0)
    noisy = torch.rand(samples, generator=generator) < noise
    drawn = torch.randint(CLASSES, (samples,), generator=generator)
    return Problem(
        name="cleaning",
        lower_loss=cleaning_lower,
        upper_loss=cleaning_upper,
        lower=(x[:samples], torch.where(noisy, drawn, y[:samples]), torch.arange(samples)),
        upper=(x[samples:], y[samples:]),
        w=torch.zeros(x.shape[1] * CLASSES, dtype=torch.float64),
        theta=torch.full((samples,), -2.0, dtype=torch.float64),
        direct=False,
        lower_steps=(0.1, 0.3),
        upper_steps=(300.0, 1000.0, 3000.0),
        bound=12.0,
    )


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    "logistic": logistic,
    "cleaning": cleaning,
}
