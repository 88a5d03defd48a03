"""Loads and stores: addresses by stride, bounds, gathers.

Outside its bound an index is clamped, so that whatever is read exists; then ``other`` takes the element's place.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from sparsec.backends.tvm.cost import HALVES, access, bounds, indices, slope
from sparsec.backends.tvm.expressions import converted, evaluate, vector
from sparsec.backends.tvm.functions import Vector, number
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.names import safe, stride_name
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.storage import cell, span, spread, typed
from sparsec.backends.tvm.text import grouped, plus, times
from sparsec.tile.language import Node, Tensor


@dataclass(slots=True)
class Where:
    """An access at a point.

    Attributes:
        first: the index of each dimension at the first lane; None where the index is gathered.
        steps: how the index grows along the lanes; None where it is gathered.
        limits: the bound of each dimension that has to be checked.
    """

    node: Node
    point: Point
    width: int
    first: list[str | None]
    steps: list[int | None]
    limits: dict[int, str]

    @property
    def tensor(self) -> Tensor:
        """The tensor."""
        return access(self.node).tensor

    @property
    def across(self) -> list[int]:
        """Bounded dimensions along which the lanes lie."""
        return [d for d in self.limits if self.steps[d] != 0]


def locate(kernel: Kernel, node: Node, point: Point, axes: tuple[object, ...]) -> Where:
    """The index and bound texts of an access at a point."""
    width = point.width if point.lane in axes else 1
    lane = point.lane if width > 1 else None
    steps = [slope(i, lane) for i in indices(node)]
    corner = point.element()
    first = [None if s is None else evaluate(kernel, i, corner) for i, s in zip(indices(node), steps, strict=True)]
    checked = {d: b for d, b in bounds(node).items() if (node.serial, d) not in kernel.trusted}
    limits = {d: evaluate(kernel, b, corner) for d, b in checked.items()}
    return Where(node, point, width, first, steps, limits)


def stride(tensor: Tensor, dimension: int) -> str:
    """The stride argument of a dimension, in elements; the last one is 1."""
    return "1" if dimension == tensor.rank - 1 else stride_name(tensor.name, dimension)


def load(kernel: Kernel, node: Node, point: Point) -> str:
    """The text of a loaded element or vector, as it is held in a kernel."""
    at = locate(kernel, node, point, node.axes)
    other = access(node).other
    loose = {d for d in at.limits if other is None or (node.serial, d) in kernel.clamped}
    conditions = [_inside(kernel, at, d) for d in at.limits if d not in loose]
    text = _held(_clamped(kernel, at), at)
    if conditions:
        outside = spread(number(other or 0.0, cell(node.dtype)), at.width)
        condition = conditions[0] if len(conditions) == 1 else f"T.And({conditions[0]}, {conditions[1]})"
        text = f"T.Select({condition}, {text}, {outside})"
        for more in conditions[2:]:
            text = f"T.Select({more}, {text}, {outside})"
    if at.across and None not in at.steps:
        text = f"T.if_then_else({_all_inside(at)}, {_held(_plain(at, at.first), at)}, {text})"
    return text


def _held(text: str, at: Where) -> str:
    """A loaded element as it is held: halves become float32."""
    dtype = at.tensor.dtype
    if dtype == "bfloat16":
        wide = f'T.Cast("{typed("int32", at.width)}", {text})'
        return f'T.reinterpret("{typed("float32", at.width)}", T.shift_left({wide}, {spread("16", at.width)}))'
    return f'T.Cast("{typed("float32", at.width)}", {text})' if dtype == "float16" else text


def _plain(at: Where, first: list[str | None]) -> str:
    """The elements from ``first`` on, along the lanes' steps."""
    strides = [stride(at.tensor, d) for d in range(at.tensor.rank)]
    base = plus(*(times(i, s) for i, s in zip(first, strides, strict=True) if i is not None))
    step = plus(*(times(str(k), s) for k, s in zip(at.steps, strides, strict=True)))
    return span(safe(at.tensor.name), base, at.width, step)


def _clamped(kernel: Kernel, at: Where) -> str:
    """The elements with every checked index moved inside its bound."""
    if None in at.steps or at.across:
        return f"{safe(at.tensor.name)}[{_lane_addresses(kernel, at, clamp=True)}]"
    first = [clamp(i, at.limits[d]) if d in at.limits and i is not None else i for d, i in enumerate(at.first)]
    return _plain(at, first)


def clamp(index: str, limit: str) -> str:
    """The index moved into ``0 … limit - 1``."""
    return f"T.max(T.min({index}, {limit} - 1), 0)"


def _lane_index(kernel: Kernel, at: Where, dimension: int) -> str:
    """The index of a dimension in every lane."""
    first, step = at.first[dimension], at.steps[dimension]
    if first is None:
        return vector(kernel, indices(at.node)[dimension], at.point)
    return f"T.Ramp({first}, {step}, {at.width})" if step else spread(first, at.width)


def _lane_addresses(kernel: Kernel, at: Where, clamp: bool) -> str:
    """The offsets of all lanes, as an int64 vector."""
    width, terms, base = at.width, [], []
    for d in range(at.tensor.rank):
        first, by = at.first[d], stride(at.tensor, d)
        if at.steps[d] == 0 and first is not None:
            index = f"T.max(T.min({first}, {at.limits[d]} - 1), 0)" if clamp and d in at.limits else first
            base.append(times(index, by))
            continue
        index = _lane_index(kernel, at, d)
        if clamp and d in at.limits:
            highest = spread(f"{grouped(at.limits[d])} - 1", width)
            index = f"T.max(T.min({index}, {highest}), {spread('0', width)})"
        wide = f'T.Cast("int64x{width}", {index})'
        terms.append(wide if by == "1" else f"{wide} * {spread(by, width)}")
    start = plus(*base)
    if start != "0":
        terms.append(spread(f'T.Cast("int64", {start})', width))
    return " + ".join(terms)


def _inside(kernel: Kernel, at: Where, dimension: int) -> str:
    """Whether each lane's index lies inside a bound."""
    first, limit = at.first[dimension], at.limits[dimension]
    if at.width == 1 or at.steps[dimension] == 0:
        assert first is not None
        return spread(f"{grouped(first)} < {limit}", at.width)
    return f"{_lane_index(kernel, at, dimension)} < {spread(limit, at.width)}"


def _all_inside(at: Where) -> str:
    """A scalar condition under which no lane needs a check."""
    tests = []
    for d, limit in at.limits.items():
        step, first = at.steps[d], at.first[d]
        assert step is not None and first is not None
        tests.append(f"{grouped(plus(first, str(max(step, 0) * (at.width - 1))))} < {limit}")
    return tests[0] if len(tests) == 1 else f"T.And({', '.join(tests[:2])})" if len(tests) == 2 else _conjunction(tests)


def _conjunction(tests: list[str]) -> str:
    text = tests[0]
    for test in tests[1:]:
        text = f"T.And({text}, {test})"
    return text


def store(kernel: Kernel, node: Node, point: Point) -> None:
    """Write a value at a point; nothing is written outside a bound."""
    at = locate(kernel, node, point, node.axes)
    value = _narrow(kernel, node.args[-1], point, at)
    scalar = [
        f"{grouped(at.first[d] or '')} < {at.limits[d]}" for d in at.limits if d not in at.across or at.width == 1
    ]
    with ExitStack() as stack:
        for condition in scalar:
            stack.enter_context(kernel.block(f"if {condition}:"))
        _write(kernel, at, value)


def _write(kernel: Kernel, at: Where, value: str) -> None:
    name = safe(at.tensor.name)
    if access(at.node).atomic:
        _write_lanes(kernel, at, value)
    elif at.width == 1 or (None not in at.steps and not at.across):
        kernel.out.line(f"{_plain(at, at.first)} = {value}")
    elif not at.across:
        kernel.out.line(f"{name}[{_lane_addresses(kernel, at, clamp=False)}] = {value}")
    elif None in at.steps:
        _write_lanes(kernel, at, value)
    else:
        whole = kernel.bind(value)
        with kernel.block(f"if {_all_inside(at)}:"):
            kernel.out.line(f"{_plain(at, at.first)} = {whole}")
        with kernel.block("else:"):
            _write_lanes(kernel, at, whole)


def _write_lanes(kernel: Kernel, at: Where, value: str) -> None:
    """One lane after the other, each under its own checks."""
    dtype = _memory(at.tensor.dtype)
    scratch = kernel.register("lane_values", 0, at.width, dtype)
    kernel.out.line(f"{scratch} = {value}")
    with kernel.loop(at.width, "lane") as lane, ExitStack() as stack:
        one = locate(kernel, at.node, at.point.element(lane), at.node.axes)
        for d in at.across:
            first = one.first[d]
            assert first is not None
            stack.enter_context(kernel.block(f"if {grouped(first)} < {one.limits[d]}:"))
        target, element = _plain(one, one.first), f"{scratch.partition('[')[0]}[{lane}]"
        kernel.out.line(f"{target} = {f'{target} + ' if access(at.node).atomic else ''}{element}")


def _memory(dtype: str) -> str:
    """The dtype of a tensor's buffer: bfloat16 is seen as its bits."""
    return "int16" if dtype == "bfloat16" else dtype


def _narrow(kernel: Kernel, value: Node, point: Point, at: Where) -> str:
    """The value in the tensor's own dtype, in every lane of the store."""
    own = point.width_of(value.axes)
    text = converted(evaluate(kernel, value, point), value.dtype, at.tensor.dtype, own)
    text = text if own == at.width else spread(text, at.width)
    if at.tensor.dtype not in HALVES:
        return text
    if at.tensor.dtype == "float16":
        return f'T.Cast("{typed("float16", at.width)}", {text})'
    bits = Vector(kernel.bind, at.width).bits(text)
    return f'T.Cast("{typed("int16", at.width)}", T.shift_right({bits}, {spread("16", at.width)}))'
