"""The rules of the tile language that constructors cannot see, or that a hand-made node might break: one row per op."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.scalar.fn import Fn
from sparsec.tile.build import FLOATS, TileError, union
from sparsec.tile.language import Access, Axis, LoopBody, Node, Program, TileOp
from sparsec.tile.regions import regions

Rule = Callable[[Node], str | None]

_HALVES = frozenset({"float16", "bfloat16"})
_EXACT = frozenset({Fn.WHERE, Fn.MINIMUM, Fn.MAXIMUM, Fn.LT, Fn.LE, Fn.EQ, Fn.NE, Fn.NEG, Fn.ABS})
_REAL = frozenset(
    {Fn.DIV, Fn.EXP, Fn.EXP2, Fn.LOG, Fn.LOG2, Fn.SQRT, Fn.RSQRT, Fn.TANH, Fn.SIGMOID, Fn.RANK}
)  # the first operand is a float
_WHOLE = frozenset({Fn.TRUNCDIV, Fn.TRUNCMOD, Fn.XOR, Fn.SHL, Fn.SHR, Fn.RANK_ID, Fn.RANK_SCORE})


def verify(program: Program) -> None:
    """Check a program against every rule. Raises TileError naming the program, the node and the rule it breaks."""
    for nodes in regions(program).nodes.values():
        for node in nodes:
            if sentence := RULES[node.op](node):
                raise TileError(f"{program.name}: {node!r}: {sentence}")
    _check_names(program)
    _check_memory(program)


def _check_names(program: Program) -> None:
    # A tensor may be called what a stride of another one is: back ends print such a tensor under another name.
    tensors, params = [t.name for t in program.tensors], [name for name, _ in program.params]
    groups = (tensors + params, params + list(program.stride_params))
    if twice := sorted({n for names in groups for n in names if names.count(n) > 1}):
        raise TileError(f"{program.name}: {', '.join(twice)} names two arguments; rename one")
    if len(program.grid) > 3:
        raise TileError(f"{program.name}: a grid has at most 3 dimensions, not {len(program.grid)}")


def _check_memory(program: Program) -> None:
    """Loads move freely, so what is loaded may not be stored by the same program."""
    known, declared = set(program.tensors), {name for name, _ in program.params}
    touched: dict[TileOp, set[str]] = {TileOp.LOAD: set(), TileOp.STORE: set()}
    for node in (n for nodes in regions(program).nodes.values() for n in nodes):
        if node.op is TileOp.PARAM and node.attrs[0] not in declared:
            raise TileError(f"{program.name}: {node.attrs[0]} is read but is no parameter of the program")
        access = node.attrs[0] if node.attrs else None
        if isinstance(access, Access):
            if access.tensor not in known:
                raise TileError(f"{program.name}: {access.tensor.name} is used but is no tensor of the program")
            touched[node.op].add(access.tensor.name)
    if both := sorted(touched[TileOp.LOAD] & touched[TileOp.STORE]):
        raise TileError(f"{program.name}: {', '.join(both)} is loaded and stored; use another kernel or another buffer")


def _leaf(node: Node) -> str | None:
    return None if not node.args else "takes no operands"


def _map(node: Node) -> str | None:
    fn = node.attrs[0]
    dtypes = [a.dtype for a in node.args]
    if fn in (Fn.FLOORDIV, Fn.MOD):
        return "rounds down; tile programs have truncdiv and truncmod only"
    if fn in _REAL and dtypes[0] != "float32":
        return f"takes float32, not {dtypes[0]}; cast it first"
    if fn in _WHOLE and not set(dtypes) <= {"int32", "int64"}:
        return f"takes integers, not {', '.join(dtypes)}"
    if set(dtypes) & _HALVES and fn not in _EXACT:
        return f"arithmetic on {', '.join(dtypes)} would round differently on each target; cast to float32 first"
    if "bool" in dtypes and fn not in (Fn.AND, Fn.OR, Fn.NOT, Fn.XOR, Fn.WHERE):
        return "takes numbers, not truth values; use where"
    return None


def _mask_if(node: Node) -> str | None:
    condition, mask, x, other = node.args
    if condition.axes or condition.dtype != "bool":
        return f"the condition must be a truth value without axes, not {condition.dtype} {condition!r}"
    return None if mask.dtype == "bool" and other.dtype == x.dtype else f"masks {x.dtype} by {mask.dtype}"


def _access(node: Node) -> str | None:
    access = node.attrs[0]
    assert isinstance(access, Access)
    rank = access.tensor.rank
    index, bounds = node.args[:rank], node.args[rank : rank + len(access.bounded)]
    if wrong := [i for i in index if i.dtype not in ("int32", "int64")]:
        return f"an index is {wrong[0].dtype}; indices are int32 or int64"
    return next((f"the bound {b!r} has axes; a bound is a scalar" for b in bounds if b.axes), None)


def _store(node: Node) -> str | None:
    value, access = node.args[-1], node.attrs[0]
    assert isinstance(access, Access)
    missing = set(value.axes) - set(union(*node.args[:-1]))
    if missing:
        return f"no index has axis {', '.join(a.name for a in missing)} of the value, so elements collide"
    if access.atomic and access.tensor.dtype != "float32":
        return f"adds atomically to {access.tensor.dtype}; only float32 is supported"
    return None


def _dot(node: Node) -> str | None:
    a, b = node.args[:2]
    if a.dtype != b.dtype or a.dtype not in FLOATS:
        return f"multiplies {a.dtype} by {b.dtype}; cast both to one float dtype"
    if node.attrs[1] not in ("ieee", "tf32", "tf32x3"):
        return f"precision {node.attrs[1]!r} is unknown; use ieee, tf32 or tf32x3"
    return None


def _along(node: Node) -> str | None:
    x = node.args[0]
    if x.dtype in _HALVES or x.dtype == "bool":
        return f"works on float32 and integers, not {x.dtype}; cast it first"
    return None


def _rename(node: Node) -> str | None:
    old, new = node.attrs
    assert isinstance(old, Axis) and isinstance(new, Axis)
    return None if old.size == new.size else f"axis {old.name} has {old.size} elements, {new.name} has {new.size}"


def _cast(node: Node) -> str | None:
    return None if node.dtype != "bool" else "compare with ne to get a truth value"


def _top_insert(node: Node) -> str | None:
    slots, candidates = node.attrs
    keys, new = node.args
    assert isinstance(slots, Axis) and isinstance(candidates, Axis)
    extra = set(new.axes) - {candidates} - set(keys.axes)
    return f"the candidates have axis {', '.join(a.name for a in extra)} that the slots lack" if extra else None


def _loop(node: Node) -> str | None:
    body = node.attrs[0]
    assert isinstance(body, LoopBody)
    if body.step < 1:
        return f"steps by {body.step}; a step is at least 1"
    lo, hi, *inits = node.args
    if lo.axes or hi.axes:
        return "its bounds must be scalars"
    matches = [(c.axes, c.dtype) == (i.axes, i.dtype) for c, i in zip(body.carries, inits, strict=True)]
    return None if all(matches) else f"carry {matches.index(False)} changes its axes or dtype"


RULES: dict[TileOp, Rule] = {
    TileOp.CONST: _leaf,
    TileOp.PARAM: _leaf,
    TileOp.PROGRAM_ID: _leaf,
    TileOp.IOTA: _leaf,
    TileOp.FULL: _leaf,
    TileOp.MAP: _map,
    TileOp.MASK_IF: _mask_if,
    TileOp.LOAD: _access,
    TileOp.STORE: lambda node: _access(node) or _store(node),
    TileOp.DOT: _dot,
    TileOp.REDUCE: _along,
    TileOp.SCAN: _along,
    TileOp.RENAME: _rename,
    TileOp.CAST: _cast,
    TileOp.TOP_INSERT: _top_insert,
    TileOp.LOOP: _loop,
    TileOp.INDEX: _leaf,
    TileOp.CARRY: _leaf,
    TileOp.RESULT: lambda node: None if node.args[0].op is TileOp.LOOP else "is the result of no loop",
}
"""What each op asks of its operands: a sentence where a node breaks the rule."""
