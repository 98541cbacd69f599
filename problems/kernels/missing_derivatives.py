"""What torch says where an operation lacks a derivative, told to whoever chose the method."""

from __future__ import annotations

import re

_FORWARD = re.compile(r"forward AD with (?:aten::)?(\w+)|implement the (jvp) function")
_SECOND = re.compile(
    r"derivative for '?(?:aten::)?(\w+?)(?:_backward)?'? is not implemented"
    r"|(out=)\.\.\. arguments don't support"
    r"|Function (once_differentiable)|marked with @(once_differentiable)"
)


def missing_derivative(error: BaseException | None) -> str | None:
    """Return what is missing and what to do, or ``None`` for an error of another kind."""
    if not isinstance(error, RuntimeError):
        return None
    for kind, pattern, instead in (
        ("forward-mode", _FORWARD, "product='exact' or derivative='central_difference'"),
        ("second", _SECOND, "type='darts' or Unroll(product='finite_difference')"),
    ):
        found = pattern.search(str(error))
        if found:
            name = next(group for group in found.groups() if group)
            known = name.strip("_") not in ("jvp", "out=", "once_differentiable")
            what = f"the operation {name.strip('_')!r}" if known else "a custom autograd function"
            return (
                f"torch has no {kind} derivative of {what}, which the loss uses. Choose a method "
                f"that needs none, such as {instead}, or compose the operation of others."
            )
    return None
