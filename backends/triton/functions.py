"""Scalar functions as Triton expressions, and the helpers that a kernel using them needs."""

from __future__ import annotations

import math

from sparsec.scalar.fn import COMPARISONS, LOGIC, Fn
from sparsec.tile.language import Node, TileOp

INFIX: dict[Fn, str] = {
    Fn.ADD: "+", Fn.SUB: "-", Fn.MUL: "*", Fn.DIV: "/", Fn.TRUNCDIV: "//", Fn.TRUNCMOD: "%",
    Fn.LT: "<", Fn.LE: "<=", Fn.EQ: "==", Fn.NE: "!=", Fn.AND: "&", Fn.OR: "|", Fn.XOR: "^", Fn.SHL: "<<", Fn.SHR: ">>",
}  # fmt: skip
CALLS: dict[Fn, str] = {
    Fn.ABS: "tl.abs", Fn.EXP: "tl.exp", Fn.EXP2: "tl.exp2", Fn.LOG: "tl.log", Fn.LOG2: "tl.log2", Fn.SQRT: "tl.sqrt",
    Fn.RSQRT: "tl.rsqrt", Fn.SIGMOID: "tl.sigmoid", Fn.MINIMUM: "tl.minimum", Fn.MAXIMUM: "tl.maximum",
    Fn.WHERE: "tl.where", Fn.TANH: "tanh", Fn.RANK: "rank", Fn.RANK_ID: "rank_id", Fn.RANK_SCORE: "rank_score",
}  # fmt: skip

HELPERS: dict[str, str] = {
    "tanh": '''
@triton.jit
def tanh(x):
    """tanh by exp, by its series near zero."""
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0)))
    return tl.where(size < 0.125, near, tl.where(x < 0.0, -far, far))
''',
    "tf32": '''
@triton.jit
def tf32(x):
    """x to the nearest of what tensor cores read as tf32, which cut off 13 bits of what they are given."""
    near = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return tl.where(x == x, near, x)
''',
    "rank": '''
@triton.jit
def rank(score, index):
    """The int64 key that sorts by larger score, then by lower index; the top bit stands for "not forced"."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where((bits & 2147483647) > 2139095040, 2143289344, bits)  # NaN of either sign: highest
    monotone = (bits ^ ((bits >> 31) | -2147483648)).to(tl.int64) & 0xFFFFFFFF
    return (monotone << 31) | (2147483647 - index).to(tl.int64) | -9223372036854775808
''',
    "rank_id": '''
@triton.jit
def rank_id(key):
    """The index in a key; -1 in an empty one."""
    field = (key & 2147483647).to(tl.int32)
    return tl.where(field == 0, -1, 2147483647 - field)
''',
    "rank_score": '''
@triton.jit
def rank_score(key):
    """The score in a key."""
    bits = (key >> 31).to(tl.int32)
    return (bits ^ ((~bits >> 31) | -2147483648)).to(tl.float32, bitcast=True)
''',
    "behind": '''
@triton.jit
def behind(keys, AXIS: tl.constexpr):
    """Twice as many ascending keys along the last axis: as many empty ones first."""
    both = tl.join(tl.full(keys.shape, -9223372036854775808, tl.int64), keys)
    if AXIS == 0:
        return tl.reshape(tl.permute(both, (1, 0)), [2 * keys.shape[0]])
    else:
        return tl.reshape(tl.permute(both, (0, 2, 1)), keys.shape[:AXIS] + [2 * keys.shape[AXIS]])
''',
    "top_few": '''
@triton.jit
def top_few(kept, new):
    """The largest keys along the last axis, descending, of descending ones and as many ascending ones."""
    return tl.bitonic_merge(tl.maximum(kept, new), descending=True)
''',
    "top_of_row": '''
@triton.jit
def top_of_row(kept, new, K: tl.constexpr, AXIS: tl.constexpr):
    """The K largest of K descending and more other keys of a single row, descending; all others at once."""
    return tl.bitonic_merge(tl.maximum(kept, tl.flip(tl.topk(new, K), AXIS)), descending=True)
''',
    "top_insert": '''
@triton.jit
def top_insert(kept, new, K: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr):
    """The K largest of K descending and N >= K other keys along the last axis, descending; K others at a time."""
    if N > K:
        one, two = tl.split(tl.reshape(new, new.shape[:AXIS] + [N // 2, 2]))
        return top_insert(top_insert(kept, one, K, N // 2, AXIS), two, K, N // 2, AXIS)
    elif K == 1:
        return tl.maximum(kept, new)
    else:
        return tl.bitonic_merge(tl.maximum(kept, tl.sort(new)), descending=True)
''',
}
"""Printed above the kernel that calls them, in this order."""


def literal(value: object, dtype: str) -> str:
    """A number as Triton source of that dtype's kind."""
    assert isinstance(value, (int, float))
    if dtype == "bool":
        return str(bool(value))
    if dtype in ("int32", "int64"):
        return str(int(value))
    number = float(value)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def call(fn: Fn, operands: list[str], node: Node) -> tuple[str, bool]:
    """A function of printed operands, and whether the text is infix and needs brackets inside another."""
    if fn in LOGIC and node.dtype == "bool":
        operands = [_truth(text, arg) for text, arg in zip(operands, node.args, strict=True)]
    if fn in INFIX:
        return f" {INFIX[fn]} ".join(operands), True
    if fn in (Fn.NEG, Fn.NOT):
        return ("-" if fn is Fn.NEG else "~") + operands[0], True
    if fn in (Fn.MINIMUM, Fn.MAXIMUM) and node.dtype == "float32":
        operands = [*operands, "propagate_nan=tl.PropagateNan.ALL"]
    return f"{CALLS[fn]}({', '.join(operands)})", False


def _truth(text: str, arg: Node) -> str:
    if arg.op is TileOp.CONST:
        return str(bool(arg.attrs[0]))
    return text if arg.dtype == "bool" else f"({text} != 0)"


def needs_tensor(fn: Fn) -> bool:
    """Whether a constant operand must become a tensor first: Triton's mathematical functions take no numbers."""
    return fn in CALLS and fn not in (Fn.WHERE, Fn.MINIMUM, Fn.MAXIMUM) and fn not in COMPARISONS
