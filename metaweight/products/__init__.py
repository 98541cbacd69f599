"""Derivatives of losses and of training loops times a vector, as functions of tensors alone.

Every hypergradient is made of these; they need no problem and no engine. With a lower loss
``L(w, θ)`` and a vector ``v`` along its parameters ``w``:

- :func:`hessian_vector_product`: ``∇²_w L · v``;
- :func:`mixed_vector_product`: ``∂²L/∂θ∂w · v``;
- :func:`reweighting_product`: the same for a mean of weighted sample losses, from forward passes;
- :func:`unrolled_vjp`: ``(ds_T/dθ)ᵀ v`` through the steps of any training loop.

Losses are functions of lists of tensors, as for ``torch.func``: a module's is
``lambda params: F.mse_loss(functional_call(module, dict(zip(names, params)), (x,)), y)``, or simply
``lambda params: F.mse_loss(module(x), y)`` when ``params`` are the module's own.
"""

from metaweight.problems.products.hessian_vector_product import hessian_vector_product
from metaweight.problems.products.mixed_vector_product import mixed_vector_product
from metaweight.problems.products.reweighting_product import reweighting_product
from metaweight.problems.unrolling.unrolled_vjp import UnrolledProduct, unrolled_vjp

__all__ = [
    "UnrolledProduct",
    "hessian_vector_product",
    "mixed_vector_product",
    "reweighting_product",
    "unrolled_vjp",
]
