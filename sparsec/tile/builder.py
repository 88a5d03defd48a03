"""The builder of one tile program: interned nodes, axes, effects and loops; ``sparsec.tile.build`` has the ops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from sparsec.tile.language import Axis, LoopBody, Node, Program, Tensor, TileOp

Value = Node | int | float

FLOATS = frozenset({"float32", "float16", "bfloat16"})


class TileError(ValueError):
    """A tile program that breaks a rule of the language."""


class _Open(threading.local):
    """The builders in use, innermost last: each thread has its own."""

    def __init__(self) -> None:
        self.builders: list[Builder] = []


_OPEN = _Open()


class Builder:
    """Collects the nodes and effects of one program; ``with`` makes it the current one of its thread."""

    def __init__(self) -> None:
        self._interned: dict[tuple[object, ...], Node] = {}
        self._serial = 0
        self._loops = 0
        self._axes: dict[str, Axis] = {}
        self._effects: list[list[Node]] = [[]]
        self.declared: dict[str, str] = {}

    def __enter__(self) -> Builder:
        _OPEN.builders.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _OPEN.builders.pop()

    @staticmethod
    def current() -> Builder:
        """The innermost builder in use."""
        if not _OPEN.builders:
            raise TileError("tile nodes are built inside `with Builder():`")
        return _OPEN.builders[-1]

    def node(
        self,
        op: TileOp,
        args: Sequence[Node] = (),
        attrs: tuple[object, ...] = (),
        dtype: str = "float32",
        axes: Sequence[Axis] = (),
        free: frozenset[int] | None = None,
    ) -> Node:
        """The interned node of these parts."""
        key = (op, tuple(id(a) for a in args), _hashable(attrs), dtype, tuple(axes))
        found = self._interned.get(key)
        if found is not None:
            return found
        depends = frozenset[int]().union(*(a.free for a in args)) if free is None else free
        made = Node(op, tuple(args), attrs, dtype, tuple(axes), depends, self._serial)
        self._serial += 1
        self._interned[key] = made
        return made

    def axis(self, name: str, size: int) -> Axis:
        """A new axis; the order of creation is the order of printed dimensions."""
        if name in self._axes:
            raise TileError(f"axis {name!r} is declared twice")
        self._axes[name] = Axis(name, size, len(self._axes))
        return self._axes[name]

    def effect(self, node: Node) -> None:
        """Append an effect to the innermost open region."""
        self._effects[-1].append(node)

    def last_effect(self) -> Node:
        """The effect that was appended last to the innermost open region."""
        return self._effects[-1][-1]

    def program(
        self, name: str, tensors: Sequence[Tensor], params: Sequence[tuple[str, str]], grid: Sequence[Value]
    ) -> Program:
        """The finished program of everything stored so far; parameters declared on the way follow those given."""
        params = tuple({**dict(params), **self.declared}.items())
        return Program(name, tuple(tensors), params, tuple(lift(g) for g in grid), tuple(self._effects[0]))

    def loop(
        self,
        lo: Value,
        hi: Value,
        step: int,
        inits: Sequence[Node],
        body: Callable[..., Sequence[Node]],
        stages: int | None = None,
    ) -> list[Node]:
        """``for i in range(lo, hi, step): carries = body(i, *carries)``; the carried values after it."""
        number, self._loops = self._loops, self._loops + 1
        own = frozenset({number})
        index = self.node(TileOp.INDEX, attrs=(number,), dtype="int32", free=own)
        carries = tuple(
            self.node(TileOp.CARRY, attrs=(number, k), dtype=x.dtype, axes=x.axes, free=own | x.free)
            for k, x in enumerate(inits)
        )
        self._effects.append([])
        yields = tuple(body(index, *carries))
        effects = tuple(self._effects.pop())
        for k, (init, out) in enumerate(zip(inits, yields, strict=True)):
            if (init.axes, init.dtype) != (out.axes, out.dtype):
                raise TileError(
                    f"loop {number}, carry {k}: enters as {init!r} {init.dtype}, leaves as {out!r} {out.dtype}"
                )
        bounds = (lift(lo), lift(hi))
        inner = frozenset[int]().union(*(x.free for x in (*bounds, *inits, *yields, *effects)))
        made = self.node(
            TileOp.LOOP,
            (*bounds, *inits),
            (LoopBody(number, step, index, carries, yields, effects, stages),),
            free=inner - own,
        )
        if effects:
            self.effect(made)
        return [self.node(TileOp.RESULT, (made,), (k,), x.dtype, x.axes, made.free) for k, x in enumerate(inits)]


def _hashable(attrs: tuple[object, ...]) -> tuple[object, ...]:
    """Attributes as an interning key that keeps 0, 0.0 and -0.0 apart."""
    return tuple((type(a), repr(a)) if isinstance(a, (int, float)) else a for a in attrs)


def const(value: int | float, dtype: str | None = None) -> Node:
    """A scalar constant: int32 for an int, float32 for a float unless told otherwise."""
    default = "int32" if isinstance(value, int) and not isinstance(value, bool) else "float32"
    return Builder.current().node(TileOp.CONST, attrs=(value,), dtype=dtype or default)


def lift(value: Value, like: Node | None = None) -> Node:
    """A number as a constant of ``like``'s dtype; a node as it is."""
    if isinstance(value, Node):
        return value
    if like is not None and like.dtype in FLOATS:
        return const(float(value), like.dtype)
    return const(value, like.dtype if like is not None and like.dtype in ("int32", "int64") else None)
