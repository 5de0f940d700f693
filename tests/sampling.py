"""Which cases of a test run when: some every day, one of each path in CI, all of them by `make test-full`.

The rule. Each case takes a path through the code, which its test tells by a function `path`; cases of equal paths run
the same code with other numbers. Of every path one case runs: the one that is named for every day, or, in `.ci/run`,
the one that is named for CI (what costs least, or shares most with other tests), else the one whose name has the
smallest CRC-32, a draw that only a new case of the same path can change. What is left is marked `full`. So a new path
is sampled by itself, and a new case of an old one costs CI nothing.
"""

import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def sampled(
    cases: Iterable[Any], path: Callable[..., Any], daily: Collection[Any] = (), ci: Collection[Any] = ()
) -> list[Any]:
    """Return pytest.param of each case (a value, or a tuple of several): no mark, `slow`, or `slow` and `full`."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    chosen = {path(*case): case for case in sorted(cases, key=_draw, reverse=True)}
    for_ci, named = ([case if isinstance(case, tuple) else (case,) for case in some] for some in (ci, daily))
    chosen |= {path(*case): case for case in (*for_ci, *named)}

    def marks(case: tuple[Any, ...]) -> tuple[pytest.MarkDecorator, ...]:
        if case in named:
            return ()
        return (pytest.mark.slow,) if chosen[path(*case)] == case else (pytest.mark.slow, pytest.mark.full)

    return [pytest.param(*case, marks=marks(case)) for case in cases]


def _draw(case: tuple[Any, ...]) -> int:
    return zlib.crc32(repr(case).encode())
