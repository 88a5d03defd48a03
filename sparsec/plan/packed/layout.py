"""Where the documents of a packed call lie in each buffer, and how large a buffer of all documents is.

Expressions here are over ``TQ`` and ``TK``, a document's queries and keys, its ``q_offset``, and ``B``, the number of
documents. ``spread`` turns the length f of a document into a place: with the tokens before a document for ``TQ`` and
``TK`` and the number of documents before it for ``B``, it is where the document begins, and documents do not meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsec.scalar.expr import Expr, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.functions import minimum
from sparsec.scalar.walk import depends_on, substitute, variables

LENGTHS = ("TQ", "TK")
"""What differs from document to document, with ``q_offset``."""

ALL, TOTAL, MOST = "all_", "total_", "most_"
"""What launch parameters begin with: a kernel's own over all documents as one; the rows of all documents; TQ and TK of
the longest document."""

TABLE = "segments_"
"""The buffer of the documents' table: a row each, with the columns FIELDS, then one per visible length."""

FIELDS = ("q_start", "q_len", "k_start", "k_len", "q_offset")


@dataclass(frozen=True, slots=True)
class Packing:
    """How a variant's documents are packed.

    Attributes:
        dims: the declaration's dims that differ by document, as expressions over TQ and TK.
        visible: lengths of the caller's own tensors other than TQ and TK (chunk counts), in the order of the columns
            of the table that say where a document begins there.
    """

    dims: tuple[tuple[str, Expr], ...]
    visible: tuple[Expr, ...] = ()

    def of(self, expr: Expr) -> Expr:
        """An expression over the declaration's dims as one over a document's lengths."""
        return substitute(expr, dict(self.dims))


@dataclass(frozen=True, slots=True)
class Packed:
    """What a kernel of a packed plan knows beside its spec.

    Attributes:
        shapes: of the buffers that it reads and writes, over a document's lengths.
    """

    packing: Packing
    shapes: tuple[tuple[str, tuple[Expr, ...]], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one buffer holds the documents.

    Attributes:
        batch: the dimension that counts documents.
        along: the dimension along which documents follow one another; None where each has its own index in ``batch``.
        start: where a document begins along it, over what comes before the document; a number is a table's column.
    """

    batch: int
    along: int | None = None
    start: Expr | int | None = None


def by_document(expr: Expr) -> bool:
    """Whether an expression differs from document to document."""
    return depends_on(expr, *LENGTHS, "q_offset")


def layout(shape: Sequence[Expr], packing: Packing) -> Layout | None:
    """The layout of a buffer of this shape, over a document's lengths; None where documents share it.

    Documents follow one another along the last dimension that counts something of theirs.
    """
    batches = [d for d, extent in enumerate(shape) if extent is var("B")]
    along = [d for d, extent in enumerate(shape) if by_document(extent)]
    if not batches:
        assert not along, f"a buffer of shape {shape} has lengths but no documents"
        return None
    if not along:
        return Layout(batches[0])
    extent = shape[along[-1]]
    if extent in packing.visible:
        return Layout(batches[0], along[-1], packing.visible.index(extent))
    return Layout(batches[0], along[-1], spread(extent))


def room(shape: Sequence[Expr], packing: Packing) -> tuple[Expr, ...]:
    """The shape to allocate, over the rows of all documents (``total_…``), and TQ and TK as those of the longest."""
    found = layout(shape, packing)
    if found is None or found.along is None:
        return tuple(shape)
    held = list(shape)
    held[found.batch] = constant(1)
    held[found.along] = total(shape[found.along], packing)
    return tuple(held)


def total(extent: Expr, packing: Packing) -> Expr:
    """At least the sum of a length over all documents: over ``total_TQ``, ``total_TK``, ``total_<column>`` and B."""
    if extent in packing.visible:
        return var(f"{TOTAL}{packing.visible.index(extent)}")
    return substitute(spread(extent), {name: var(TOTAL + name) for name in LENGTHS})


def spread(extent: Expr) -> Expr:
    """Where documents with such a length may begin, over what comes before them; see the module's docstring.

    The place p fulfils p(after the document) - p(before it) >= f(the document) for all documents. Raises ValueError
    where no rule finds one.
    """
    if not by_document(extent):
        return extent * var("B")
    if extent.head == "var":
        return extent
    if extent.head is Fn.ADD or extent.head is Fn.MAXIMUM:  # max(x, y) <= x + y where none is negative
        return spread(extent.args[0]) + spread(extent.args[1])
    if extent.head is Fn.SUB and not by_document(extent.args[1]):
        return spread(extent.args[0]) - spread(extent.args[1])
    if extent.head is Fn.MINIMUM:
        return minimum(spread(extent.args[0]), spread(extent.args[1]))
    if extent.head is Fn.MUL:
        factors = [a for a in extent.args if not by_document(a)]
        rest = [a for a in extent.args if by_document(a)]
        if len(factors) == 1:
            return factors[0] * spread(rest[0])
    if extent.head is Fn.FLOORDIV and not by_document(extent.args[1]):
        return spread(extent.args[0]) // extent.args[1]
    raise ValueError(f"no bound for {extent} over several documents: it is no sum, product or quotient by a number")


def parameters(kernel: Mapping[str, Expr], lowered: Mapping[str, Expr], packing: Packing) -> dict[str, Expr]:
    """A kernel's launch parameters over a document's lengths and B, from those of the plan and of the lowering."""
    own = {name: packing.of(value) for name, value in kernel.items()}
    return {**own, **{name: substitute(value, own) for name, value in lowered.items()}}


def hosts(expressions: Iterable[Expr]) -> list[str]:
    """The dims that expressions read and that all documents have alike."""
    known = {*LENGTHS, "q_offset", "B"}
    return sorted({n for e in expressions for n in variables(e)} - known)
