"""The one node type: immutable and interned, so that `is` means equal."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, overload

from sparsec.ir.op import Op
from sparsec.scalar.expr import Expr, ExprLike, element
from sparsec.scalar.expr import Kind as ScalarKind

Kind = Literal["tensor", "memory", "state", "scores", "selection", "cotangent"]
Value = Expr | str | int | float | bool | None | tuple["Value", ...]
Attrs = tuple[tuple[str, Value], ...]
Shape = tuple[Expr, ...]

_INSTEAD = "lang.map(x, y, fn=lambda x0, x1: …) computes elementwise, lang.merge(…) joins outputs"


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """One value of the graph.

    Attributes:
        src: positional sources, then the named ones (attribute ``operands``), then captured tensors (``captures``).
        attrs: sorted pairs; every attribute of the op is there, defaults included.
        shape: of a memory (B, T, HKV, D, DV or 0), a state (B, N, HKV, D, DV), scores (B, TQ, HS, N), a selection
            (B, TQ, HS, K) or () where it is a mask.
        kind: a cotangent is what one reader of a written state hands back: its own gradient, never an array per token.
        dtype: "float" (the call's dtype), "float32" or "int32".
    """

    op: Op
    src: tuple[Node, ...]
    attrs: Attrs
    shape: Shape
    kind: Kind
    dtype: str

    @overload
    def __getitem__(self, key: str) -> Value: ...

    @overload
    def __getitem__(self, key: ExprLike | tuple[ExprLike, ...]) -> Expr: ...

    def __getitem__(self, key: str | ExprLike | tuple[ExprLike, ...]) -> Value:
        """``node["k"]``: an attribute. ``slopes[h]``, in a traced function: an element of a captured input."""
        if not isinstance(key, str):
            return self._element(key if isinstance(key, tuple) else (key,))
        for name, value in self.attrs:
            if name == key:
                return value
        raise KeyError(f"{self.op.value} has no attribute `{key}`")

    def _element(self, index: tuple[ExprLike, ...]) -> Expr:
        if self.op is not Op.INPUT:
            raise TypeError(f"the result of {self.op.value} has no name here: pass it by a keyword, name=<it>, as well")
        if len(index) != len(self.shape):
            raise TypeError(f"`{self['name']}` has {len(self.shape)} dims and {len(index)} indices: index every dim")
        return element(str(self["name"]), *index, kind=self.element_kind)

    @property
    def element_kind(self) -> ScalarKind:
        """What an element of the tensor is in an expression."""
        return "int" if self.dtype == "int32" else "float"

    def _no_arithmetic(self, *others: object) -> NoReturn:
        raise TypeError(f"a {self.op.value} node is no number yet: {_INSTEAD}")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _no_arithmetic
    __neg__ = __matmul__ = _no_arithmetic

    @classmethod
    def __torch_function__(cls, function: object, types: object, *arguments: object) -> NoReturn:
        raise TypeError(f"torch.{getattr(function, '__name__', function)} takes tensors, not nodes: {_INSTEAD}")

    def __reduce__(self) -> tuple[object, ...]:
        return intern, (self.op, self.src, dict(self.attrs), self.shape, self.kind, self.dtype)

    def integer(self, attr: str) -> int:
        """An attribute that is an int."""
        value = self[attr]
        assert isinstance(value, int) and not isinstance(value, bool), (self.op, attr, value)
        return value

    def word(self, attr: str) -> str:
        """An attribute that is one of some words."""
        value = self[attr]
        assert isinstance(value, str), (self.op, attr, value)
        return value

    def flag(self, attr: str) -> bool:
        """An attribute that is true or false."""
        value = self[attr]
        assert isinstance(value, bool), (self.op, attr, value)
        return value

    def expr(self, attr: str) -> Expr | None:
        """An attribute that is an expression, or None."""
        value = self[attr]
        assert value is None or isinstance(value, Expr), (self.op, attr, value)
        return value

    def names(self, attr: str) -> tuple[str, ...]:
        """An attribute that is a tuple of names; () where the op has no such attribute."""
        value = dict(self.attrs).get(attr, ())
        assert isinstance(value, tuple)
        return tuple(str(item) for item in value)

    @property
    def positional(self) -> tuple[Node, ...]:
        """The sources that are neither named nor captured."""
        return self.src[: len(self.src) - len(self.names("operands")) - len(self.names("captures"))]

    @property
    def operands(self) -> dict[str, Node]:
        """The named sources, such as ``weights`` of an attend."""
        start = len(self.positional)
        return dict(zip(self.names("operands"), self.src[start:], strict=False))

    @property
    def captures(self) -> dict[str, Node]:
        """The captured tensors by the name that expressions use."""
        names = self.names("captures")
        return dict(zip(names, self.src[len(self.src) - len(names) :], strict=True))

    def __repr__(self) -> str:
        return f"<{self.op.value} {self.kind} {'x'.join(str(dim) for dim in self.shape)}>"


_TABLE: weakref.WeakValueDictionary[tuple[object, ...], Node] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def _key(value: Value) -> object:
    """What tells two attribute values apart: 1, 1.0 and True are three values."""
    if isinstance(value, Expr):
        return ("expr", id(value))
    return tuple(_key(item) for item in value) if isinstance(value, tuple) else (type(value), repr(value))


def intern(op: Op, src: Sequence[Node], attrs: dict[str, Value], shape: Shape, kind: Kind, dtype: str) -> Node:
    """The one node with these parts. Only ``sparsec.ir.build.make`` calls this, which infers and checks them."""
    pairs = tuple(sorted(attrs.items()))
    parts = tuple((name, _key(value)) for name, value in pairs)
    key = (op, tuple(id(s) for s in src), parts, tuple(id(dim) for dim in shape), kind, dtype)
    found = _TABLE.get(key)
    if found is None:
        with _LOCK:  # two threads must not make two of one
            found = _TABLE.get(key)
            if found is None:
                found = _TABLE[key] = Node(op, tuple(src), pairs, shape, kind, dtype)
    return found


def topological(roots: Sequence[Node]) -> list[Node]:
    """Every node that the roots need, sources first, in the order of a walk from the first root."""
    done: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            done.setdefault(node)
        elif node not in done:
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(node.src))
    return list(done)
