"""The inputs that candidates are judged on: low scores, a length that reaches every tile path, and the full length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from sparsec.autotune.joint import Joint, is_backward, on_sampled_rows
from sparsec.autotune.low_scores import with_low_scores
from sparsec.autotune.space import Space
from sparsec.ir.dims import value
from sparsec.ir.error import InputError
from sparsec.ir.lengths import Lengths, lengths
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.plan.plan import Kernel, Plan
from sparsec.plan.specs import GatheredAttention, Selector
from sparsec.runtime import bind
from sparsec.runtime.compiled import Compiled
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr

RAGGED = 17
NEARLY_ALL = 0.7
BATCH = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One call with everything that its kernels have written.

    Attributes:
        dims: the declaration's dims and ``q_offset``.
        buffers: every buffer of the plan by name.
        whole: whether this is a full call so long that only sampled rows are judged.
        judged: whether the oracle says what is right; else results must agree with the first admitted kernel's.
    """

    dims: Mapping[str, int]
    buffers: Mapping[str, Tensor]
    whole: bool
    lengths: Lengths
    judged: bool = True

    @property
    def size(self) -> str:
        """The lengths in words."""
        return ", ".join(f"{n} = {self.dims[n]}" for n in sorted(self.lengths.names, reverse=True))

    def parts(self, kernel: Kernel, written: Mapping[str, Tensor]) -> Iterator[tuple[Case, Mapping[str, Tensor]]]:
        """What the oracle judges: each a dense call with what the kernel wrote of it."""
        yield self, written

    def comparable(self, kernel: Kernel, written: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the kernel wrote without what nobody reads."""
        return written


class DenseCall:
    """A call of a compiled variant as something to tune; of a joint one with gradients of its outputs. InputError."""

    def __init__(self, compiled: Compiled, inputs: Mapping[str, Tensor], q_offset: int | None) -> None:
        self.compiled, self.inputs, self.q_offset = compiled, inputs, q_offset
        self.dims, dtype = compiled.bind(inputs, q_offset)
        bind.check_devices(inputs, compiled.target.device)
        bind.check_indices(compiled.variant, inputs, self.dims)
        self.plan = compiled.plan(self.dims, dtype)

    def cases(self, kernel: Kernel, space: Space) -> list[Case]:
        """What candidates of a kernel are judged on."""
        return cases(self.compiled, self.plan, self.inputs, self.q_offset, kernel, space)


def cases(
    compiled: Compiled, plan: Plan, inputs: Mapping[str, Tensor], q_offset: int | None, kernel: Kernel, space: Space
) -> list[Case]:
    """A short case of low scores, the reduced one, and the full one; earlier kernels run at their best.

    Without low scores for a kernel that scores no keys, without a reduced case where that would be nearly the full one.
    At full length gradients are judged under gradients of the output on sampled rows; with all rows they are timed, and
    compared with an admitted kernel's.
    """
    dims, _ = compiled.bind(inputs, q_offset)
    known = lengths(compiled.variant)
    tokens = Tokens(kernel, known, dims)

    def cut(length: int) -> Case | None:
        try:
            small, offset = shrunk(compiled.graph, inputs, dims, length, q_offset)
            small_dims, _ = compiled.bind(small, offset)
        except InputError:  # the declaration ties a length to something that cannot be cut
            return None
        return Case(small_dims, compiled.run_plan(plan, small, small_dims), False, known)

    length = reach(tokens, space)
    reduced = cut(length) if length <= NEARLY_ALL * tokens.longest else None
    full = Case(dims, compiled.run_plan(plan, inputs, dims), reduced is not None, known)
    if is_backward(kernel):
        if reduced is None:
            return [full]
        assert isinstance(compiled, Joint)
        few = on_sampled_rows(compiled, inputs)
        sampled = Case(dims, compiled.run_plan(plan, few, dims), False, known)
        return [reduced, sampled, replace(full, judged=False)]
    low = with_low_scores_of(kernel, cut(odd(min(edges(tokens, space), tokens.longest))))
    return [case for case in (low, reduced, full) if case is not None]


def with_low_scores_of(kernel: Kernel, case: Case | None) -> Case | None:
    """The case with scores far below zero; None for a kernel that scores no keys."""
    buffers = None if case is None else with_low_scores(kernel.spec, case.buffers)
    return None if case is None or buffers is None else replace(case, buffers=buffers)


def odd(length: int) -> int:
    """This length or one less: a multiple of no tile, so that the last one is padded."""
    return (length - 1) | 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """How a kernel's launch parameters follow from the lengths of a call."""

    kernel: Kernel
    lengths: Lengths
    dims: Mapping[str, int]

    @property
    def longest(self) -> int:
        """The number of tokens, or of queries where that is more."""
        return self.lengths.longest(self.dims)

    def per(self, name: str) -> int:
        """How many tokens a unit of this launch parameter stands for; 0 where that length is fixed."""
        expr, keys = dict(self.kernel.params)[name], self.lengths.key_names
        size = int(evaluate(expr, self.dims))
        halved = int(evaluate(expr, {n: d // 2 if n in keys else d for n, d in self.dims.items()}))
        return 0 if size == halved else -(-self.longest // max(size, 1))

    @property
    def per_key(self) -> int:
        """The most tokens that one row of a memory of this kernel stands for."""
        return max((self.per(name) for name, _ in self.kernel.params if name not in _NO_LENGTHS), default=1)


_NO_LENGTHS = {"B", "TQ", "q_offset"}


def edges(tokens: Tokens, space: Space) -> int:
    """A length at which every candidate has more than two tiles either way, the last of them ragged."""
    rows = max(space.schedule({"rows": text}).rows for text in _values(space, "rows"))
    block = max(space.schedule({"block": text}).block for text in _values(space, "block"))
    return 2 * rows + 2 * block * tokens.per_key + RAGGED


def reach(tokens: Tokens, space: Space) -> int:
    """A length at which every candidate has first, interior, boundary and ragged tiles."""
    length, spec = edges(tokens, space), tokens.kernel.spec
    length += max((n for n in _numbers(spec) if n < tokens.longest), default=0)
    if isinstance(spec, GatheredAttention):
        length += spec.chunk * (spec.slots + 2)
    if isinstance(spec, Selector):
        length += tokens.per(spec.block_length) * (spec.slots + 2)
    return length | 1


def _values(space: Space, name: str) -> tuple[str, ...]:
    return space.choices.get(name) or (str(getattr(space.default, name)),)


def _numbers(part: object) -> Iterator[int]:
    """Every whole number of the predicates of a spec: windows, chunk sizes, strides."""
    if isinstance(part, Expr):
        if isinstance(part.value, int) and not isinstance(part.value, bool):
            yield part.value
        for arg in part.args:
            yield from _numbers(arg)
    elif isinstance(part, tuple):
        for item in part:
            yield from _numbers(item)
    elif is_dataclass(part):
        for f in fields(part):
            held = getattr(part, f.name)
            if isinstance(held, Expr | tuple) or is_dataclass(held):
                yield from _numbers(held)


def shrunk(
    graph: Variant, inputs: Mapping[str, Tensor], dims: Mapping[str, int], length: int, q_offset: int | None
) -> tuple[dict[str, Tensor], int | None]:
    """The first tokens of the inputs, with lists cut to the chunks that are left, and where their queries begin."""
    known = lengths(graph)
    whole = known.key_count(dims) if known.keys is not None else length
    keys = min(length, whole)
    less = {n: min(size, keys) if n in known.names else size for n, size in dims.items()}
    less["B"] = min(dims.get("B", 1), BATCH)
    small = {name: _cut(inputs[name], [value(d, less) for d in spec.shape]) for name, spec in graph.inputs.items()}
    for name, units in _list_limits(graph, less).items():
        small[name] = torch.where(small[name] >= units, -1, small[name])
    lost = whole - keys
    return small, None if q_offset is None else max(q_offset - lost, 0)


def _cut(x: Tensor, shape: list[int]) -> Tensor:
    for d, size in enumerate(shape):
        x = x.narrow(d, 0, min(size, x.shape[d]))
    return x.contiguous()


def _list_limits(graph: Variant, dims: Mapping[str, int]) -> dict[str, int]:
    """How many units there are, by the input that lists them."""
    limits: dict[str, int] = {}
    for node in graph.nodes:
        for selection in node.positional[2:] if node.op is Op.ATTEND else ():
            if selection.op is Op.GIVEN and selection.src[0].op is Op.INPUT:
                tokens = int(evaluate(node.src[1].shape[1], dims))
                limits[str(selection.src[0]["name"])] = -(-tokens // selection.integer("size"))
    return limits
