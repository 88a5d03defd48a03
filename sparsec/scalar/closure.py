"""Tensors in the closure or module of a traced function: finding them, and putting named stand-ins in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

from sparsec.scalar.expr import Expr, ExprLike, Kind, element

KINDS: tuple[Kind, ...] = ("int", "float", "bool")


@dataclass(frozen=True, slots=True)
class Captured:
    """Stands for a captured tensor inside a traced function; indexing gives an element.

    Attributes:
        rank: the number of its dimensions; None where that is not known.
    """

    name: str
    kind: Kind
    rank: int | None = None

    def __getitem__(self, index: ExprLike | tuple[ExprLike, ...]) -> Expr:
        listed = index if isinstance(index, tuple) else (index,)
        for k in listed:
            if not isinstance(k, Expr | int):
                raise TypeError(f"`{self.name}[{k!r}]`: an index is an integer expression, not a slice or a tensor")
        if self.rank is not None and len(listed) != self.rank:
            raise TypeError(
                f"`{self.name}` has {self.rank} dimensions and {len(listed)} indices: index every dimension"
            )
        return element(self.name, *listed, kind=self.kind)


def captured_tensors(fn: Callable[..., Any]) -> dict[str, Any]:
    """Every tensor that a function and the functions in its closure read, by name (``_1`` … where names clash)."""
    found: dict[str, Any] = {}
    for name, value in _leaves(fn, set()):
        if _is_tensor(value) and not any(value is known for known in found.values()):
            unique, number = name, 0
            while unique in found:
                number += 1
                unique = f"{name}_{number}"
            found[unique] = value
    return found


def rebind(fn: Callable[..., Any], captures: Mapping[str, Any]) -> Callable[..., Any]:
    """The same function reading ``Captured`` stand-ins instead of the tensors of ``captures``."""
    return _Rebinding(captures).function(fn) if captures and isinstance(fn, FunctionType) else fn


def stand_in(name: str, tensor: Any) -> Captured:
    """What stands for a tensor (or a kind) of a name."""
    if isinstance(tensor, str):
        assert tensor in KINDS, f"{name}: no kind {tensor!r}"
        return Captured(name, tensor)
    dtype = str(tensor.dtype).removeprefix("torch.")
    kind: Kind = "bool" if dtype == "bool" else "float" if "float" in dtype else "int"
    return Captured(name, kind, len(tensor.shape))


def _is_tensor(value: Any) -> bool:
    return (
        not isinstance(value, type)
        and hasattr(value, "dtype")
        and hasattr(value, "shape")
        and hasattr(value, "__getitem__")
    )


def _names(code: CodeType) -> Iterator[str]:
    """Global names that a function's code may read, nested functions included."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _reads(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    """The closure's variables, then the module's, that a function reads."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet: a function that refers to itself
            continue
    yield from ((name, fn.__globals__[name]) for name in _names(fn.__code__) if name in fn.__globals__)


def _leaves(value: Any, seen: set[int], name: str = "") -> Iterator[tuple[str, Any]]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        for inner, held in _reads(value):
            yield from _leaves(held, seen, inner)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _leaves(held, seen, name)
    else:
        yield name, value


class _Rebinding:
    """Copies functions (and lists of them) with tensors replaced; each function once, so that cycles end."""

    def __init__(self, captures: Mapping[str, Any]) -> None:
        self.captures = captures
        self.copies: dict[int, FunctionType] = {}

    def value(self, name: str, value: Any) -> Any:
        for known, tensor in self.captures.items():
            if tensor is value or (isinstance(tensor, str) and known == name and _is_tensor(value)):
                return stand_in(known, tensor if isinstance(tensor, str) else value)
        if isinstance(value, FunctionType) and any(True for _ in self._concerned(value)):
            return self.function(value)
        if type(value) in (list, tuple):
            return type(value)(self.value(name, held) for held in value)
        return value

    def _concerned(self, fn: FunctionType) -> Iterator[Any]:
        """Tensors that a function reads, however deep."""
        return (value for _, value in _leaves(fn, set()) if _is_tensor(value))

    def function(self, fn: FunctionType) -> FunctionType:
        if id(fn) in self.copies:
            return self.copies[id(fn)]
        cells = tuple(CellType() for _ in fn.__closure__ or ())
        module = dict(fn.__globals__)
        copy = FunctionType(fn.__code__, module, fn.__name__, fn.__defaults__, cells if fn.__closure__ else None)
        copy.__kwdefaults__ = fn.__kwdefaults__
        self.copies[id(fn)] = copy
        held = dict(zip(fn.__code__.co_freevars, cells, strict=True))
        for name, value in _reads(fn):
            if name in held:
                held[name].cell_contents = self.value(name, value)
            else:
                module[name] = self.value(name, value)
        return copy
