"""Walks over expressions, iterative so that long unions of masks do not exhaust the stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from sparsec.scalar.expr import Expr, Kind, call, element, lift

T = TypeVar("T")


def postorder(root: Expr) -> list[Expr]:
    """Every expression of a tree once, operands before their users."""
    done: dict[int, Expr] = {}
    stack = [(root, False)]
    while stack:
        x, ready = stack.pop()
        if id(x) in done:
            continue
        if ready or not x.args:
            done[id(x)] = x
        else:
            stack.append((x, True))
            stack.extend((a, False) for a in reversed(x.args))
    return list(done.values())


def transform(root: Expr, rule: Callable[[Expr, tuple[T, ...]], T]) -> T:
    """Bottom up: the rule's value of the root, given each expression and the values of its operands."""
    values: dict[int, T] = {}
    for x in postorder(root):
        values[id(x)] = rule(x, tuple(values[id(a)] for a in x.args))
    return values[id(root)]


def rebuilt(x: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same head over other operands, folded again."""
    if all(a is b for a, b in zip(x.args, args, strict=True)):
        return x
    if x.head == "element":
        return element(str(x.value), *args, kind=x.kind)
    assert not isinstance(x.head, str)
    return call(x.head, *args)


def substitute(root: Expr, values: Mapping[str, Expr | int | float | bool]) -> Expr:
    """Variables replaced by expressions or numbers, by name."""

    def rule(x: Expr, args: tuple[Expr, ...]) -> Expr:
        return lift(values[str(x.value)]) if x.head == "var" and x.value in values else rebuilt(x, args)

    return transform(root, rule)


def variables(root: Expr) -> dict[str, Kind]:
    """The names and kinds of the variables, in order of first use."""
    return {str(x.value): x.kind for x in postorder(root) if x.head == "var"}


def tensors(root: Expr) -> dict[str, Kind]:
    """The names and kinds of the captured tensors, in order of first use."""
    return {str(x.value): x.kind for x in postorder(root) if x.head == "element"}


def depends_on(root: Expr, *names: str) -> bool:
    """Whether any of the variables occurs."""
    return any(x.head == "var" and x.value in names for x in postorder(root))
