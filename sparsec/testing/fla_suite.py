"""Runs flash-linear-attention's own tests on ``sparsec.compat.fla``: a pytest plugin for a checkout of that project.

``python -m pytest -p sparsec.testing.fla_suite tests/ops/test_gla.py`` in the checkout. In each test module the ops
that sparsec has are exchanged for sparsec's, except where a call makes the reference: on a line whose result is named
``ref…``, or in a function ``run_ref``. A test that calls no op of sparsec's, and one that asks for what is refused by
name, are skipped with the reason. ``FLA_CASES=3`` keeps that many cases of each test.
"""

from __future__ import annotations

import functools
import linecache
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Generator
from types import CodeType, FrameType
from typing import Any

import pytest

from sparsec.compat import fla
from sparsec.ir.error import InputError

REFERENCE = re.compile(r"\s*ref")
calls: Counter[str] = Counter()
made: set[Callable[..., Any]] = set()


def exchanged(name: str, theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Ours, or theirs where the caller makes a reference."""
    ours = getattr(fla, name)

    @functools.wraps(theirs)
    def call(*args: Any, **options: Any) -> Any:
        if is_reference(sys._getframe(1)):
            return theirs(*args, **options)
        calls[name] += 1
        return ours(*args, **options)

    return call


def is_reference(caller: FrameType) -> bool:
    """Whether what is called now gives a test's truth."""
    line = linecache.getline(caller.f_code.co_filename, caller.f_lineno)
    return caller.f_code.co_name == "run_ref" or REFERENCE.match(line) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Exchanges the ops in every test module and among the parameters of tests, and keeps the first cases."""
    most, seen = int(os.environ.get("FLA_CASES", "1000000")), Counter[str]()
    kept: list[pytest.Function] = []
    for item in items:
        _exchange(vars(item.module))
        if hasattr(item, "callspec"):
            _exchange(item.callspec.params, by_value=True)
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if seen[test] <= most:
            kept.append(item)
        if not uses(item.function.__code__) and not hasattr(item, "callspec"):
            item.add_marker(pytest.mark.skip("calls no op of sparsec's"))
    items[:] = kept


def uses(code: CodeType) -> bool:
    """Whether a function names an op of sparsec's, in itself or in a function inside it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return bool({*code.co_names} & {*fla.__all__}) or any(uses(part) for part in inner)


def _exchange(names: dict[str, Any], by_value: bool = False) -> None:
    for key, value in list(names.items()):
        name = getattr(value, "__name__", "") if by_value else key
        if name in fla.__all__ and callable(value) and value not in made:
            names[key] = exchanged(name, value)
            made.add(names[key])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skips, after the fact, what was refused by name or called nothing of ours."""
    calls.clear()
    try:
        done = yield
    except InputError as error:
        pytest.skip(f"refused: {error}")
    if not calls:
        pytest.skip("calls no op of sparsec's")
    return done
