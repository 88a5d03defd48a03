"""Packed calls as something to tune: documents of a call taken apart, so that the oracle can judge each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsec.autotune.cases import NEARLY_ALL, Case, Tokens, edges, odd, reach, shrunk, with_low_scores_of
from sparsec.autotune.joint import is_backward
from sparsec.autotune.space import Space
from sparsec.ir.lengths import lengths
from sparsec.oracle.values import OracleError
from sparsec.plan.packed.layout import FIELDS, TABLE, TOTAL, Layout, Packing, layout, total
from sparsec.plan.plan import Kernel
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.packed.documents import Documents, Given
from sparsec.runtime.packed.inputs import ends, together
from sparsec.runtime.packed.segments import table
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr

JUDGED = 4
"""Documents of a full call that the oracle judges; the others are held to an admitted kernel's."""
REDUCED = 3
"""Documents of a reduced call: one as long as the candidates need, one shorter, and one token."""

Shapes = Mapping[str, tuple[Expr, ...]]
EMPTY = Packing(())


@dataclass(frozen=True, slots=True)
class PackedCase(Case):
    """A packed call with everything that its kernels have written.

    Attributes:
        packing, shapes: where documents lie in the inputs; a kernel says so of its own buffers.
    """

    packing: Packing = EMPTY
    shapes: Shapes | None = None

    @property
    def size(self) -> str:
        """The lengths in words."""
        counts = self.buffers[TABLE][:, 1].tolist()
        return f"documents of {', '.join(map(str, counts[:4]))}{', …' if len(counts) > 4 else ''} tokens"

    def parts(self, kernel: Kernel, written: Mapping[str, Tensor]) -> Iterator[tuple[Case, Mapping[str, Tensor]]]:
        """The documents that the oracle judges, each as a dense call.

        Raises OracleError where they share a result, or are all too short to judge by.
        """
        assert kernel.packed is not None and self.shapes is not None
        shapes = {**self.shapes, **dict(kernel.packed.shapes)}
        at = {name: layout(shape, self.packing) for name, shape in kernel.packed.shapes}
        if any(at[name] is None for name in kernel.writes) and any(at[n] is not None for n in kernel.reads if n in at):
            raise OracleError("its results are summed over documents")
        least = 2 if is_backward(kernel) else 1
        numbers = self._numbers(least)
        if not numbers:
            raise OracleError(f"no document has {least} or more queries and keys")
        for number in numbers:
            own, dims = document(self.packing, shapes, self.buffers, self.dims, number)
            held = {name: shapes[name] for name in kernel.writes}
            found, _ = document(self.packing, held, {**self.buffers, **written}, self.dims, number)
            yield Case(dims, own, False, self.lengths), found

    def comparable(self, kernel: Kernel, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was written without the room between documents, which holds nothing."""
        assert kernel.packed is not None
        shapes, found = {name: shape for name, shape in kernel.packed.shapes if name in written}, dict(written)
        every = range(len(self.buffers[TABLE]))
        apart = [document(self.packing, shapes, {**self.buffers, **written}, self.dims, n)[0] for n in every]
        for name, shape in shapes.items():
            at = layout(shape, self.packing)
            if at is not None and at.along is not None:
                found[name] = torch.cat([own[name] for own in apart], at.along)
        return found

    def _numbers(self, least: int) -> list[int]:
        """All documents of so many queries and keys or more, or of a full call the longest and some others.

        Gradients of a document of one token are zero for all that only scores read: nothing to err in relation to.
        """
        rows = self.buffers[TABLE].tolist()
        some = [n for n, row in enumerate(rows) if min(row[1], row[3]) >= least]
        if not self.whole or len(some) <= JUDGED:
            return some
        longest = max(some, key=lambda n: rows[n][1])
        return sorted({longest, some[0], some[len(some) // 2], some[-1]})


def document(
    packing: Packing, shapes: Shapes, buffers: Mapping[str, Tensor], dims: Mapping[str, int], number: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """One document's slices of packed buffers, with a batch of one, and its dims with ``q_offset``."""
    row = [int(x) for x in buffers[TABLE][number]]
    own = {n: d for n, d in dims.items() if not n.startswith(TOTAL)} | {"TQ": row[1], "TK": row[3], "B": 1}
    own |= {"q_offset": row[4]}
    own |= {name: int(evaluate(length, own)) for name, length in packing.dims}
    before = {**dims, "TQ": row[0], "TK": row[2], "B": number}
    found = {}
    for name, shape in shapes.items():
        at, x = layout(shape, packing), buffers[name]
        if at is not None and at.along is None:
            x = x.narrow(at.batch, number, 1)
        elif at is not None and at.along is not None:
            x = x.narrow(at.along, _start(at, row, before), int(evaluate(shape[at.along], own)))
        found[name] = x
    return found, own


def _start(at: Layout, row: Sequence[int], before: Mapping[str, int]) -> int:
    assert at.start is not None
    return row[len(FIELDS) + at.start] if isinstance(at.start, int) else int(evaluate(at.start, before))


class PackedCall:
    """A packed call of a compiled variant, with gradients where it is joint: dims, plan, and cases of its kernels."""

    def __init__(self, base: Compiled, compiled: Compiled, inputs: Mapping[str, Tensor], given: Given) -> None:
        self.compiled, self.calls = compiled, base.packed
        tensors = [inputs[name] for name in base.names]
        self.documents = self.calls.documents(tensors, given)
        self.views = dict(zip(base.names, self.calls.views(tensors), strict=True))
        self.dims, self.dtype = self.calls.bind(self.views, self.documents)
        variant, packing = compiled.variant, self.calls.packing
        self.shapes = {name: tuple(packing.of(d) for d in spec.shape) for name, spec in variant.inputs.items()}
        self.views |= self._cotangents()
        self.plan = self.calls.plan(compiled.plan(self.dims, self.dtype, packed=True))

    def _cotangents(self) -> dict[str, Tensor]:
        """Normal random gradients of the outputs, in the order of the documents."""
        first = next(x for x in self.views.values() if x.is_floating_point())
        generator, found = torch.Generator(first.device).manual_seed(1), {}
        for name in self.shapes.keys() - self.views.keys():
            shape, at = self.shapes[name], layout(self.shapes[name], self.calls.packing)
            sizes = [int(evaluate(d, self.dims)) for d in shape]
            if at is not None and at.along is not None:
                sizes[at.batch] = 1
                sizes[at.along] = int(evaluate(total(shape[at.along], self.calls.packing), self.dims))
            drawn = torch.randn(sizes, generator=generator, device=first.device)
            own = self.compiled.variant.inputs[name].dtype == "float"
            found[name] = drawn.to(first.dtype if own else torch.float32)
        return found

    def cases(self, kernel: Kernel, space: Space) -> list[Case]:
        """As ``sparsec.autotune.cases.cases``: low scores, a few short documents, and the call itself."""
        tokens = Tokens(kernel, lengths(self.compiled.variant), self.dims)
        length = reach(tokens, space)
        reduced = self._cut(length)
        full = self._case(self.views, self.documents, self.dims, reduced is not None)
        if is_backward(kernel):
            return [full] if reduced is None else [reduced, replace(full, judged=False)]
        low = with_low_scores_of(kernel, self._cut(odd(min(edges(tokens, space), tokens.longest))))
        return [case for case in (low, reduced, full) if case is not None]

    def _case(
        self, views: Mapping[str, Tensor], documents: Documents, dims: Mapping[str, int], whole: bool
    ) -> PackedCase:
        buffers = self.compiled.run_plan(self.plan, {**views, TABLE: documents.table}, dims)
        known = lengths(self.compiled.variant)
        return PackedCase(dims, buffers, whole, known, True, self.calls.packing, self.shapes)

    def _cut(self, length: int) -> PackedCase | None:
        """The first tokens of the longest documents; None where that would be nearly everything."""
        rows = self.documents.table.tolist()
        longest = sorted((n for n, row in enumerate(rows) if row[1]), key=lambda n: -rows[n][1])[:REDUCED]
        sizes = dict(zip(longest, (length, length // 3 | 1, 1), strict=False))
        kept = sum(min(rows[n][1], size) for n, size in sizes.items())
        if not kept or kept > NEARLY_ALL * sum(row[1] for row in rows):
            return None
        views, documents = self._together([self._shrunk(n, size) for n, size in sizes.items()])
        base = {name: views[name] for name in self.calls.compiled.names}
        return self._case(views, documents, self.calls.bind(base, documents)[0], False)

    def _shrunk(self, number: int, length: int) -> dict[str, Tensor]:
        """One document's first tokens as the inputs of a dense call."""
        known = {**self.views, TABLE: self.documents.table}
        own, dims = document(self.calls.packing, self.shapes, known, self.dims, number)
        return shrunk(self.compiled.graph, own, dims, length, None)[0]

    def _together(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Documents]:
        """Dense inputs of documents, each with a batch of one -> packed views and their table."""
        known = self.compiled.lengths
        dims = [self.compiled.bind(part)[0] for part in parts]
        queries = [known.query_count(d) for d in dims]
        keys = [known.key_count(d) for d in dims] if known.keys is not None else queries
        device, visible = self.documents.table.device, self.calls.packing.visible
        made = table(ends(queries, device), ends(keys, device), None, known.keys is not None, visible)
        views = together(self.shapes, self.calls.packing, parts)
        return views, Documents(made, len(parts), (max(queries), max(keys)))
