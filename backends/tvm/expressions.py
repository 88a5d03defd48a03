"""The text of a value at a point: what is stored is read, everything else is computed in place."""

from __future__ import annotations

from sparsec.backends.tvm.cost import HALVES, slope
from sparsec.backends.tvm.functions import Vector, is_special, number
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.names import safe
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.storage import cell, spread, typed
from sparsec.backends.tvm.text import grouped, is_number, plus, times
from sparsec.scalar.fn import COMPARISONS, LOGIC, Fn
from sparsec.tile.language import Axis, Node, TileOp

INFIX = {Fn.ADD: "+", Fn.SUB: "-", Fn.MUL: "*", Fn.DIV: "/", Fn.LT: "<", Fn.LE: "<=", Fn.EQ: "=="}
TURNED = {Fn.LT: ">", Fn.LE: ">=", Fn.EQ: "=="}
"""A comparison with its sides exchanged: a number never stands on the left."""

BITWISE = {
    Fn.AND: "bitwise_and",
    Fn.OR: "bitwise_or",
    Fn.XOR: "bitwise_xor",
    Fn.SHL: "shift_left",
    Fn.SHR: "shift_right",
}
DIVISION = {Fn.TRUNCDIV: "truncdiv", Fn.TRUNCMOD: "truncmod"}
EXACT = frozenset({Fn.WHERE, Fn.MINIMUM, Fn.MAXIMUM, Fn.NEG, Fn.ABS})
"""Functions whose result is one of the operands up to its sign, so that nothing is rounded."""

INTEGERS = frozenset({"int32", "int64"})
_WIDEST = {"bool": 0, "int32": 1, "int64": 2, "float32": 3}


def evaluate(kernel: Kernel, node: Node, point: Point) -> str:
    """The value at a point: a vector if the point's lane axis is among the node's axes, else a scalar."""
    known = kernel.recall(node, point)
    if known is not None:
        return known
    if node.serial in kernel.stored:
        return _read(kernel, node, point)
    text = compute(kernel, node, point)
    if _is_shared(kernel, node, point) and not text.isidentifier():
        text = named(kernel, node, point, text)
        kernel.remember(node, point, text)
    return text


def vector(kernel: Kernel, node: Node, point: Point) -> str:
    """The value at a point, a scalar repeated in every lane."""
    text = evaluate(kernel, node, point)
    return text if point.lane in node.axes else spread(text, point.width)


def compute(kernel: Kernel, node: Node, point: Point) -> str:
    """The value computed from its operands."""
    width = point.width_of(node.axes)
    if node.op in (TileOp.CONST, TileOp.FULL):
        return spread(number(node.attrs[0], cell(node.dtype)), width)  # type: ignore[arg-type]
    if node.op is TileOp.PARAM:
        return safe(str(node.attrs[0]))
    if node.op is TileOp.LOAD:
        return kernel.load(kernel, node, point)
    if node.op is TileOp.RENAME:
        old, new = node.attrs
        assert isinstance(old, Axis) and isinstance(new, Axis)
        return evaluate(kernel, node.args[0], point.renamed(old, new))
    if node.dtype in INTEGERS and width > 1 and (step := slope(node, point.lane)) is not None:
        return _ramp(kernel, node, point, step)
    if node.op is TileOp.IOTA:
        return point.rows[node.axes[0]]
    if node.op is TileOp.CAST:
        return _cast(kernel, node, point)
    assert node.op is TileOp.MAP, node
    return _map(kernel, node, point, width)


def _read(kernel: Kernel, node: Node, point: Point) -> str:
    text = kernel.stored[node.serial].at(point)
    width = point.width_of(node.axes)
    return f"({text} != {spread('0', width)})" if node.dtype == "bool" else text


def named(kernel: Kernel, node: Node, point: Point, text: str, stem: str = "v") -> str:
    """The value of a node under a new name."""
    return kernel.bind(text, stem, "" if node.dtype == "bool" else cell(node.dtype), point.width_of(node.axes))


def _is_shared(kernel: Kernel, node: Node, point: Point) -> bool:
    """Whether to name a value: it has several readers, or computing it is long. Vectors of booleans cannot be named."""
    if node.op not in (TileOp.MAP, TileOp.CAST, TileOp.LOAD) or (
        node.dtype == "bool" and point.width_of(node.axes) > 1
    ):
        return False
    return len(kernel.found.users[node.serial]) > 1 and not (node.dtype in INTEGERS and slope(node, point.lane))


def _ramp(kernel: Kernel, node: Node, point: Point, step: int) -> str:
    first = compute(kernel, node, point.element())
    if node.dtype == "int64":
        first = f'T.Cast("int64", {first})'
    return f"T.Ramp({first}, {step}, {point.width})" if step else spread(first, point.width)


def converted(text: str, source: str, target: str, width: int) -> str:
    """A value held as one dtype, held as another."""
    source, target = ("bool" if d == "bool" else cell(d) for d in (source, target))
    if source == target:
        return text
    if target == "bool":
        return f"({text} != {spread(number(0, source), width)})"
    if source == "bool":
        return f"T.Select({text}, {spread(number(1, target), width)}, {spread(number(0, target), width)})"
    return f'T.Cast("{typed(target, width)}", {text})'


def _cast(kernel: Kernel, node: Node, point: Point) -> str:
    (x,) = node.args
    width = point.width_of(node.axes)
    text = converted(evaluate(kernel, x, point), x.dtype, node.dtype, width)
    exact = node.dtype == "float32" or (node.dtype == x.dtype)
    return text if exact or node.dtype not in HALVES else rounded(kernel, text, node.dtype, width)


def rounded(kernel: Kernel, text: str, dtype: str, width: int) -> str:
    """A float32 rounded to a half type, still held as float32."""
    if dtype == "bfloat16":
        return Vector(kernel.bind, width).round_bfloat16(text)
    return f'T.Cast("{typed("float32", width)}", T.Cast("{typed("float16", width)}", {text}))'


def _operands(kernel: Kernel, node: Node, point: Point, width: int) -> list[str]:
    """The operands in the dtype in which the function works, all of one width."""
    fn = node.attrs[0]
    if fn in (Fn.RANK, Fn.RANK_ID, Fn.RANK_SCORE):
        wanted = {Fn.RANK: ["float32", "int32"], Fn.RANK_ID: ["int64"], Fn.RANK_SCORE: ["int64"]}[fn]
    elif fn in COMPARISONS:
        wanted = [max((_held(a) for a in node.args), key=lambda d: _WIDEST[d])] * 2
    elif fn is Fn.WHERE:
        wanted = ["bool", _held(node), _held(node)]
    else:
        wanted = [_held(node)] * len(node.args)
    texts = []
    for arg, dtype in zip(node.args, wanted, strict=True):
        own = point.width_of(arg.axes)
        text = converted(evaluate(kernel, arg, point), arg.dtype, dtype, own)
        texts.append(text if own == width else spread(text, width))
    return texts


def _held(node: Node) -> str:
    return "bool" if node.dtype == "bool" else cell(node.dtype)


def _map(kernel: Kernel, node: Node, point: Point, width: int) -> str:
    fn = node.attrs[0]
    assert isinstance(fn, Fn)
    operands = _operands(kernel, node, point, width)
    text = _apply(kernel, fn, operands, _held(node), _held(node.args[0]), width)
    if node.dtype in HALVES and fn not in EXACT:
        return rounded(kernel, text, node.dtype, width)
    return text


def _apply(kernel: Kernel, fn: Fn, x: list[str], dtype: str, source: str, width: int) -> str:
    if fn in (Fn.MAXIMUM, Fn.MINIMUM):
        return _extreme(kernel, fn, x, dtype, width)
    if is_special(fn):
        return str(getattr(Vector(kernel.bind, width), fn.value)(*x))
    if fn in (Fn.ADD, Fn.MUL) and dtype in INTEGERS and width == 1:
        return plus(*x) if fn is Fn.ADD else times(*x)
    if fn in INFIX:
        return _infix(fn, *x)
    if fn is Fn.NE:
        return f"T.Not({x[0]} == {x[1]})"
    if fn in DIVISION:
        return f"T.{DIVISION[fn]}({x[0]}, {x[1]})"
    if fn is Fn.WHERE:
        return f"T.Select({x[0]}, {x[1]}, {x[2]})"
    if fn in LOGIC and dtype == "bool":
        return f"T.{fn.value.title()}({', '.join(x)})"
    return _rest(kernel, fn, x, dtype, width)


def _infix(fn: Fn, a: str, b: str) -> str:
    if fn in TURNED and is_number(a):
        return f"({grouped(b)} {TURNED[fn]} {a})"
    return f"({grouped(a)} {INFIX[fn]} {grouped(b)})"


def _rest(kernel: Kernel, fn: Fn, x: list[str], dtype: str, width: int) -> str:
    if fn is Fn.XOR and dtype == "bool":
        return f"T.Or(T.And({x[0]}, T.Not({x[1]})), T.And(T.Not({x[0]}), {x[1]}))"
    if fn in BITWISE:
        return f"T.{BITWISE[fn]}({x[0]}, {x[1]})"
    if fn is Fn.NOT:
        return f"T.bitwise_not({x[0]})"
    if fn is Fn.SQRT:
        return Vector(kernel.bind, width).root(x[0])
    if fn is Fn.RSQRT:
        return f"({spread('T.float32(1.0)', width)} / {Vector(kernel.bind, width).root(x[0])})"
    if fn is Fn.LOG:
        return f"({Vector(kernel.bind, width).log2(x[0])} * {spread('T.float32(0.6931471805599453)', width)})"
    if fn is Fn.NEG:
        return f"({x[0]} * {spread(number(-1, dtype), width)})"
    assert fn is Fn.ABS, f"{fn} occurs only in expressions"
    if dtype == "float32":
        return Vector(kernel.bind, width).magnitude(x[0])
    return f"T.max({x[0]}, {spread(number(0, dtype), width)} - {x[0]})"


def _extreme(kernel: Kernel, fn: Fn, x: list[str], dtype: str, width: int) -> str:
    short = "max" if fn is Fn.MAXIMUM else "min"
    if dtype == "bool":
        return f"T.{'Or' if short == 'max' else 'And'}({x[0]}, {x[1]})"
    if dtype in INTEGERS:
        return f"T.{short}({x[0]}, {x[1]})"
    return Vector(kernel.bind, width).extreme(short, kernel.bind(x[0], dtype="float32", width=width), x[1])
