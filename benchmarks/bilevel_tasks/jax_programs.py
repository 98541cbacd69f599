"""The published algorithms as jitted JAX programs, in double precision on one thread.

They are ours, written from the papers, with the settings of benchmark_bilevel, whose solvers are
not installable: SOBA and SABA (Dagréou et al., NeurIPS 2022, arXiv:2201.13409), AmIGO (Arbel and
Mairal, ICLR 2022, arXiv:2111.14580), stocBiO (Ji et al., ICML 2021, arXiv:2010.07962); and implicit
gradients by jaxopt (Blondel et al., NeurIPS 2022, arXiv:2105.15183), on all samples. All steps
between two looks at ``θ`` are one compiled loop. Import this in a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # one thread, as for torch
)

import jax
import jax.numpy as jnp
import numpy as np

from .batches import numbers
from .problems import CLASSES, PROBLEMS, RIDGE, Problem
from .traces import Settings, Trace

STEPS = 10
Values = dict[str, Any]

jax.config.update("jax_enable_x64", True)


def quadratic_lower(w: Any, theta: Any, batch: Any) -> Any:
    """As in :mod:`.problems`, and so the others."""
    a, c, d, linear = batch
    return jnp.mean(0.5 * (a @ w) ** 2 + (c @ theta) * (d @ w) + linear @ w)


def quadratic_upper(w: Any, theta: Any, batch: Any) -> Any:
    b, direct, *rest = batch
    return quadratic_lower(w, theta, rest) + jnp.mean(0.5 * (b @ theta) ** 2 + direct @ theta)


def logistic_lower(w: Any, theta: Any, batch: Any) -> Any:
    return logistic_upper(w, theta, batch) + 0.5 * jnp.sum(jnp.exp(theta) * w**2)


def logistic_upper(w: Any, theta: Any, batch: Any) -> Any:
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def _entropies(w: Any, x: Any, y: Any) -> Any:
    logits = x @ w.reshape(-1, CLASSES)
    own = jnp.take_along_axis(logits, y[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - own


def cleaning_lower(w: Any, theta: Any, batch: Any) -> Any:
    x, y, index = batch
    return jnp.mean(jax.nn.sigmoid(theta[index]) * _entropies(w, x, y)) + RIDGE * jnp.sum(w**2)


def cleaning_upper(w: Any, theta: Any, batch: Any) -> Any:
    x, y = batch
    return jnp.mean(_entropies(w, x, y))


LOSSES: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "quadratic": (quadratic_lower, quadratic_upper),
    "logistic": (logistic_lower, logistic_upper),
    "cleaning": (cleaning_lower, cleaning_upper),
}


class Oracles:
    """Gradients and products of numbered batches."""

    def __init__(self, problem: Problem) -> None:
        self.lower_loss, self.upper_loss = LOSSES[problem.name]
        self.lower, self.upper = (
            [jnp.asarray(np.stack(parts)) for parts in zip(*problem.batches(level), strict=True)]
            for level in ("lower", "upper")
        )

    def slope(self, w: Any, theta: Any, i: Any) -> Any:
        """``∇_w G_i``."""
        return jax.grad(self.lower_loss)(w, theta, [part[i] for part in self.lower])

    def products(self, w: Any, theta: Any, i: Any, v: Any) -> tuple[Any, Any, Any]:
        """``∇_w G_i``, ``(∂²G_i/∂w∂w) v`` and ``(∂²G_i/∂θ∂w) v``; what is not used is not run."""
        found, back = jax.vjp(lambda *at: self.slope(*at, i), w, theta)
        return found, *back(v)

    def above(self, w: Any, theta: Any, j: Any) -> tuple[Any, Any]:
        """``∇_w F_j`` and ``∇_θ F_j``."""
        batch = [part[j] for part in self.upper]
        return jax.grad(self.upper_loss, argnums=(0, 1))(w, theta, batch)


def corrected(table: Any, number: Any, new: Any) -> tuple[Any, Any]:
    """Return ``new - entry + mean`` and the table with ``new`` for the entry; it starts at 0."""
    return new - table[number] + table.mean(0), table.at[number].set(new)


def soba(at: Oracles, rates: Any, carry: Values, below: Any, above: Any) -> Values:
    """One step of all three variables from the same point, by step sizes that fall."""
    w, theta, v, t = (carry[name] for name in ("w", "theta", "v", "t"))
    slope, curved, mixed = at.products(w, theta, below[0], v)
    upper, direct = at.above(w, theta, above)
    lower_step, upper_step = rates / jnp.sqrt(t + 1.0)
    return carry | {
        "w": w - lower_step * slope,
        "v": v - lower_step * (curved - upper),
        "theta": theta - upper_step * (direct - mixed),
        "t": t + 1,
    }


def saba(at: Oracles, rates: Any, carry: Values, below: Any, above: Any) -> Values:
    """SOBA with all five quantities corrected by tables, and constant step sizes."""
    w, theta, v = (carry[name] for name in ("w", "theta", "v"))
    lowers = at.products(w, theta, below[0], v)
    found = [*zip(lowers, ("slope", "curved", "mixed"), [below[0]] * 3, strict=True)]
    found += zip(at.above(w, theta, above), ("upper", "direct"), [above] * 2, strict=True)
    s = {}
    for value, name, number in found:
        s[name], carry[name] = corrected(carry[name], number, value)
    return carry | {
        "w": w - rates[0] * s["slope"],
        "v": v - rates[0] * (s["curved"] - s["upper"]),
        "theta": theta - rates[1] * (s["direct"] - s["mixed"]),
    }


def _descent(at: Oracles, rate: Any, carry: Values, below: Any) -> Any:
    def step(k: Any, w: Any) -> Any:
        return w - rate * at.slope(w, carry["theta"], below[k])

    return jax.lax.fori_loop(0, STEPS, step, carry["w"])


def amigo(at: Oracles, rates: Any, carry: Values, below: Any, above: Any) -> Values:
    """``STEPS`` steps of ``w``, as many of ``v`` from the last one, and one of ``θ``."""
    w, theta = _descent(at, rates[0], carry, below), carry["theta"]
    upper, direct = at.above(w, theta, above)

    def step(k: Any, v: Any) -> Any:
        return v - rates[0] * (at.products(w, theta, below[STEPS + k], v)[1] - upper)

    v = jax.lax.fori_loop(0, STEPS, step, carry["v"])
    mixed = at.products(w, theta, below[2 * STEPS], v)[2]
    return carry | {"w": w, "v": v, "theta": theta - rates[1] * (direct - mixed)}


def stocbio(at: Oracles, rates: Any, carry: Values, below: Any, above: Any) -> Values:
    """``STEPS`` steps of ``w``, a series of as many terms of other batches, and one of ``θ``."""
    w, theta = _descent(at, rates[0], carry, below), carry["theta"]
    upper, direct = at.above(w, theta, above)

    def step(k: Any, both: Any) -> Any:
        term, total = both
        term = term - rates[0] * at.products(w, theta, below[STEPS + k], term)[1]
        return term, total + term

    _, total = jax.lax.fori_loop(0, STEPS, step, (upper, upper))
    mixed = at.products(w, theta, below[2 * STEPS], rates[0] * total)[2]
    return carry | {"w": w, "theta": theta - rates[1] * (direct - mixed)}


def jaxopt_implicit(at: Oracles, rates: Any, carry: Values, below: Any, above: Any) -> Values:
    """The implicit gradient of jaxopt's gradient descent, ``STEPS`` steps on all samples from the
    last ``w``, by as many steps of conjugate gradients."""
    import jaxopt

    del below, above
    lower, upper = (
        [part.reshape(-1, *part.shape[2:]) for part in parts] for parts in (at.lower, at.upper)
    )
    solver = jaxopt.GradientDescent(
        lambda w, theta: at.lower_loss(w, theta, lower),
        maxiter=STEPS,
        tol=0.0,
        stepsize=lambda count: rates[0],  # a function, since it is not known when compiled
        acceleration=False,
        implicit_diff=True,
        implicit_diff_solve=partial(jaxopt.linear_solve.solve_cg, maxiter=STEPS),
    )

    def value(theta: Any) -> tuple[Any, Any]:
        w = solver.run(carry["w"], theta).params
        return at.upper_loss(w, theta, upper), w

    gradient, w = jax.grad(value, has_aux=True)(carry["theta"])
    return carry | {"w": w, "theta": carry["theta"] - rates[1] * gradient}


@dataclass(frozen=True)
class Algorithm:
    """An algorithm.

    Attributes:
        step: A step of ``θ`` and what belongs to it.
        lower: Lower batches of a step.
    """

    step: Callable[..., Values]
    lower: int = 1


ALGORITHMS: Mapping[str, Algorithm] = {
    "SOBA": Algorithm(soba),
    "SABA": Algorithm(saba),
    "AmIGO": Algorithm(amigo, 2 * STEPS + 1),
    "StocBiO": Algorithm(stocbio, 2 * STEPS + 1),
    "jaxopt": Algorithm(jaxopt_implicit),
}


def calls(problem: Problem, name: str) -> float:
    """Return the oracle calls of one step of ``θ``, counted as in :mod:`.counting`."""
    uppers = 2 if problem.direct else 1
    if name == "jaxopt":
        below, above = (len(problem.batches(level)) for level in ("lower", "upper"))
        return (2 * STEPS + 1) * below + uppers * above
    return uppers + (3 if name in {"SOBA", "SABA"} else 2 * STEPS + 1)


class Program:
    """An algorithm on a problem, compiled once for each number of steps.

    Args:
        problem: The problem.
        name: One of :data:`ALGORITHMS`.
    """

    def __init__(self, problem: Problem, name: str) -> None:
        self._problem = problem
        self._algorithm = ALGORITHMS[name]
        self._oracles = Oracles(problem)
        self._run = jax.jit(self._scanned)

    def start(self) -> Values:
        """Return what is carried from step to step, before the first."""
        w, theta = (jnp.asarray(t.numpy()) for t in (self._problem.w, self._problem.theta))
        carry = {"w": w, "theta": theta, "v": jnp.zeros_like(w), "t": jnp.zeros(())}
        if self._algorithm.step is saba:
            below, above = (len(self._problem.batches(level)) for level in ("lower", "upper"))
            like = {"slope": (below, w), "curved": (below, w), "mixed": (below, theta)}
            like |= {"upper": (above, w), "direct": (above, theta)}
            carry |= {name: jnp.zeros((n, len(t))) for name, (n, t) in like.items()}
        return carry

    def trace(self, settings: Settings, iterations: int, every: int) -> Trace:
        """Run and return the trace; compiling is not in its seconds."""
        looks, each = iterations // every, self._algorithm.lower
        shapes = {"lower": (looks, every, each), "upper": (looks, every)}
        below, above = (
            jnp.asarray(
                numbers(
                    len(self._problem.batches(level)), settings.seed, level, int(np.prod(shape))
                ).reshape(shape)
            )
            for level, shape in shapes.items()
        )
        rates = jnp.asarray([settings.lower_step, settings.upper_step])
        carry = self.start()
        jax.block_until_ready(self._run(rates, carry, below[0], above[0]))
        found = Trace()
        found.begin(time.process_time())
        for look in range(looks):
            carry = jax.block_until_ready(self._run(rates, carry, below[look], above[look]))
            found.note(time.process_time(), carry["theta"])
        return found

    def loop(self, settings: Settings, iterations: int) -> Callable[[], Any]:
        """Return a compiled run of so many steps from the start, without a trace."""
        rates, below, above = self._inputs(settings, iterations)
        below, above = jnp.asarray(below), jnp.asarray(above)
        return lambda: jax.block_until_ready(self._run(rates, self.start(), below, above))

    def calls(self, settings: Settings, iterations: int) -> Callable[[], Any]:
        """Return the same run with each step compiled and called by Python, as where something is
        to be done between two of them."""
        rates, below, above = self._inputs(settings, iterations)
        one = jax.jit(self._step)

        def run() -> Any:
            carry = self.start()
            for ids in zip(below, above, strict=True):
                carry = one(rates, carry, *ids)
            return jax.block_until_ready(carry)

        return run

    def _inputs(self, settings: Settings, iterations: int) -> tuple[Any, Any, Any]:
        each = self._algorithm.lower
        below, above = (
            np.asarray(numbers(len(self._problem.batches(level)), settings.seed, level, length))
            for level, length in (("lower", each * iterations), ("upper", iterations))
        )
        rates = jnp.asarray([settings.lower_step, settings.upper_step])
        return rates, below.reshape(iterations, each), above

    def _step(self, rates: Any, carry: Values, below: Any, above: Any) -> Values:
        return self._algorithm.step(self._oracles, rates, dict(carry), below, above)

    def _scanned(self, rates: Any, carry: Values, below: Any, above: Any) -> Values:
        def step(carry: Values, ids: Any) -> tuple[Values, None]:
            return self._step(rates, carry, *ids), None

        return jax.lax.scan(step, carry, (below, above))[0]


@lru_cache
def program(problem: str, name: str) -> Program:
    """Return the program of a problem by its name; the same one again."""
    return Program(PROBLEMS[problem](), name)


def trace(problem: Problem, name: str, settings: Settings, iterations: int, every: int) -> Trace:
    """Run an algorithm and return its trace."""
    return program(problem.name, name).trace(settings, iterations, every)
