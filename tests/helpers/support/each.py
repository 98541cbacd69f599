"""One test over many items, such as files: a test for each would cost more than its look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def for_each(
    items: Iterable[Item], name: Callable[[Item], str] = str
) -> Callable[[Callable[[Item], None]], Callable[[], None]]:
    """Let a test look at all items, and fail with what it says of each that it fails for."""
    present = list(items)
    assert present

    def over_all(look: Callable[[Item], None]) -> Callable[[], None]:
        def test() -> None:
            wrong = []
            for item in present:
                try:
                    look(item)
                except AssertionError as error:
                    wrong.append(f"{name(item)}: {error}")
            assert not wrong, "\n".join(wrong)

        test.__name__, test.__doc__ = look.__name__, look.__doc__
        return test

    return over_all
