"""Evaluation of expressions over numbers and torch tensors; every other reading is tested against it."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import transform


def evaluate(expr: Expr, env: Mapping[str, Any]) -> Any:
    """The value of an expression: Python arithmetic on numbers, torch (broadcasting) where a tensor takes part.

    Args:
        env: variables by name (numbers or tensors), captured tensors by name (an element is advanced indexing; an
            index outside reads the nearest element).

    Raises:
        KeyError: a variable or tensor that ``env`` lacks.
    """

    def rule(x: Expr, args: tuple[Any, ...]) -> Any:
        if x.head == "const":
            return x.value
        if x.head in ("var", "element"):
            value = _lookup(x, env)
            return value if x.head == "var" else _element(value, args)
        assert isinstance(x.head, Fn)
        return apply(x.head, *args)

    return transform(expr, rule)


def apply(fn: Fn, *args: Any) -> Any:
    """A scalar function of numbers or torch tensors."""
    torch = sys.modules.get("torch")
    if torch is None or not any(isinstance(a, torch.Tensor) for a in args):
        return NUMBERS[fn](*args)
    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    # A number keeps all its digits: fp64 without dimensions does not widen an fp32 tensor, but serves an fp64 one.
    kinds = [torch.float64 if isinstance(a, float) else None for a in args]
    tensors = (torch.as_tensor(a, dtype=kind, device=device) for a, kind in zip(args, kinds, strict=True))
    return _tensor_function(fn)(*tensors)


def _lookup(x: Expr, env: Mapping[str, Any]) -> Any:
    if x.value not in env:
        raise KeyError(f"no value for `{x.value}`; given: {', '.join(env) or 'nothing'}")
    return env[str(x.value)]


def _element(tensor: Any, index: tuple[Any, ...]) -> Any:
    """One element per point of the index, the nearest one where it lies outside; 0 where the tensor has none."""
    if not hasattr(tensor, "shape"):
        return tensor[index]
    if 0 in tensor.shape:
        return sum(index) * 0 + tensor.sum()
    last = [size - 1 for size in tensor.shape]
    return tensor[tuple(_between(i, end) for i, end in zip(index, last, strict=True))]


def _between(i: Any, last: int) -> Any:
    return min(max(i, 0), last) if isinstance(i, int) else i.clamp(0, last)


def _tensor_function(fn: Fn) -> Callable[..., Any]:
    import torch

    special: dict[Fn, Callable[..., Any]] = {
        Fn.DIV: torch.true_divide, Fn.FLOORDIV: lambda a, b: torch.floor_divide(a, _divisor(b)),
        Fn.MOD: lambda a, b: torch.remainder(a, _divisor(b)),
        Fn.AND: torch.bitwise_and, Fn.OR: torch.bitwise_or, Fn.XOR: torch.bitwise_xor, Fn.NOT: torch.bitwise_not,
        Fn.SHL: torch.bitwise_left_shift, Fn.SHR: torch.bitwise_right_shift,
    }  # fmt: skip
    return special[fn] if fn in special else getattr(torch, fn.value)


def _divisor(b: Any) -> Any:
    """A whole number that is divided by: one in place of zero, as in kernels, where nothing could be raised."""
    return b if b.is_floating_point() else b.where(b != 0, b.new_ones(()))


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if not a or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _clipped(compute: Callable[[float], float]) -> Callable[[float], float]:
    """Infinity instead of an overflow, NaN outside the domain."""

    def rule(x: float) -> float:
        try:
            return compute(x)
        except OverflowError:
            return math.inf
        except ValueError:
            return -math.inf if x == 0 else math.nan

    return rule


def _sigmoid(x: float) -> float:
    small = math.exp(-abs(x))
    return 1 / (1 + small) if x >= 0 else small / (1 + small)


def _extremum(better: Callable[[float, float], bool]) -> Callable[[float, float], float]:
    return lambda a, b: a if a != a or better(a, b) else b


NUMBERS: dict[Fn, Callable[..., Any]] = {
    Fn.ADD: operator.add, Fn.SUB: operator.sub, Fn.MUL: operator.mul, Fn.DIV: _divide,
    Fn.FLOORDIV: operator.floordiv, Fn.MOD: operator.mod, Fn.NEG: operator.neg, Fn.ABS: abs,
    Fn.MINIMUM: _extremum(operator.lt), Fn.MAXIMUM: _extremum(operator.gt),
    Fn.EXP: _clipped(math.exp), Fn.EXP2: _clipped(math.exp2), Fn.LOG: _clipped(math.log), Fn.LOG2: _clipped(math.log2),
    Fn.SQRT: _clipped(math.sqrt), Fn.RSQRT: lambda x: _divide(1.0, _clipped(math.sqrt)(x)),
    Fn.TANH: math.tanh, Fn.SIGMOID: _sigmoid,
    Fn.LT: operator.lt, Fn.LE: operator.le, Fn.EQ: operator.eq, Fn.NE: operator.ne,
    Fn.AND: operator.and_, Fn.OR: operator.or_, Fn.XOR: operator.xor,
    Fn.NOT: lambda x: not x if isinstance(x, bool) else ~x, Fn.SHL: operator.lshift, Fn.SHR: operator.rshift,
    Fn.WHERE: lambda condition, then, otherwise: then if condition else otherwise,
}  # fmt: skip
