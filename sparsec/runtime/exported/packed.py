"""The launcher of an exported file for packed documents: ``run`` takes ``cu_seqlens`` and inputs without a batch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from sparsec.lower.lowered import Lowered
from sparsec.plan.packed.layout import LENGTHS, TABLE, TOTAL
from sparsec.plan.plan import Kernel, Plan
from sparsec.runtime.exported.module import Exported, named
from sparsec.runtime.exported.run import checked_lists, expected, launched, no_gradients
from sparsec.runtime.kernel import lowered
from sparsec.runtime.packed.documents import Face
from sparsec.scalar.expr import Expr

ARGUMENTS = "cu_seqlens: Tensor, cu_seqlens_k: Tensor | None = None"
LONGEST = "max_seqlen_q: int | None = None, max_seqlen_k: int | None = None"


@dataclass(frozen=True)
class PackedFile(Exported):
    """A packed plan that is being written to a file."""

    @property
    def face(self) -> Face:
        """How documents lie in the inputs."""
        return self.compiled.packed.face

    @cached_property
    def plan(self) -> Plan:
        """The packed plan at the fixed dims."""
        return self.compiled.packed.plan(self.compiled.plan(self.dims, self.dtype, packed=True))

    @cached_property
    def kernels(self) -> list[tuple[Kernel, Lowered]]:
        """Each kernel's programs for documents, with its launch parameters over the rows of all."""
        found = [(k, self.compiled.schedule(k, self.dims)) for k in self.plan.kernels]
        return [lowered(kernel, replace(schedule, descriptors=False)) for kernel, schedule in found]

    @property
    def without_descriptors(self) -> list[str]:
        """None: packed kernels read by pointers wherever they run."""
        return []

    @cached_property
    def free(self) -> frozenset[str]:
        """Documents, the longest one's lengths, and the rows of all."""
        own = super().free
        totals = (*LENGTHS, *map(str, range(len(self.face.packing.visible))))
        return frozenset({*own, "B", *LENGTHS, *(TOTAL + name for name in totals)})


def run_packed_text(file: PackedFile) -> str:
    """The function ``run`` for packed documents."""
    returned = [_returned(file, n) for n in range(len(file.plan.outputs))]
    result = "Tensor" if len(returned) == 1 else f"tuple[{', '.join(['Tensor'] * len(returned))}]"
    inputs = ", ".join(f"{named(name)}: Tensor" for name in file.variant.inputs)
    about = [
        f'"""{file.variant.name} over documents that follow one another; cu_seqlens (int32) is 0 and then their ends.',
        "",
        'For inference only: no gradients. Without max_seqlen_… a CPU reads the ends, and a GPU takes all rows."""',
    ]
    lines = ["def run(", f"    {inputs}, {ARGUMENTS},", f"    {LONGEST},", f") -> {result}:"]
    lines += [f"    {line}".rstrip() for line in (*about, *_body(file))]
    return "\n".join([*lines, f"    return {', '.join(returned)}"])


def _body(file: PackedFile) -> Iterator[str]:
    yield from no_gradients(file)
    yield from _ends(file)
    yield from _rows(file)
    yield from expected(file, lambda name: _shape(file, name))
    yield from _longest()
    yield from _table(file)
    yield from checked_lists(file, file.face.packing.of)
    for name, at in file.face.layouts.items():
        if at is not None and at.along is not None:
            yield f"{named(name)} = {named(name)}.unsqueeze({at.batch})"
    yield from launched(file)


def _ends(file: PackedFile) -> Iterator[str]:
    """Where documents end, and how many there are."""
    yield 'ends("cu_seqlens", cu_seqlens, DEVICE)'
    if file.face.shared:
        yield "if cu_seqlens_k is not None:"
        yield f'    raise ValueError("{file.variant.name} has one length for queries and keys: leave cu_seqlens_k out")'
    yield 'ends_k = cu_seqlens if cu_seqlens_k is None else ends("cu_seqlens_k", cu_seqlens_k, DEVICE)'
    yield "if ends_k.shape != cu_seqlens.shape:"
    yield '    raise ValueError("cu_seqlens and cu_seqlens_k have different numbers of documents")'
    yield "B, q_offset = cu_seqlens.numel() - 1, 0"


def _rows(file: PackedFile) -> Iterator[str]:
    """The rows of all documents."""
    rows = {_total(file, name): f"{named(name)}.shape[{axis}]" for name, axis in _axes(file)}
    for name, value in rows.items():
        yield f"{name} = {value}"
    if f"{TOTAL}TQ" not in rows:
        yield f"{TOTAL}TQ = {TOTAL}TK"
    if f"{TOTAL}TK" not in rows:
        yield f"{TOTAL}TK = {TOTAL}TQ"


def _longest() -> Iterator[str]:
    """The longest document's lengths."""
    yield f'TQ = longest("cu_seqlens", cu_seqlens, {TOTAL}TQ, max_seqlen_q)'
    yield "most_k = max_seqlen_q if cu_seqlens_k is None and max_seqlen_k is None else max_seqlen_k"
    yield f'TK = longest("cu_seqlens_k", ends_k, {TOTAL}TK, most_k)'


def _axes(file: PackedFile) -> Iterator[tuple[str, int]]:
    """The inputs in which documents follow one another, and the packed dimension along which they do."""
    for name, at in file.face.layouts.items():
        if at is not None and at.along is not None:
            yield name, at.along - (at.along > at.batch)


def _along(file: PackedFile, name: str) -> int:
    at = file.face.layouts[name]
    assert at is not None and at.along is not None
    return at.along


def _total(file: PackedFile, name: str) -> str:
    """The variable that counts the rows of all documents in an input."""
    extent = file.face.shapes[name][_along(file, name)]
    return f"{TOTAL}{extent.value if extent.head == 'var' else file.face.packing.visible.index(extent)}"


def _shape(file: PackedFile, name: str) -> str:
    """The packed shape of an input as a Python tuple."""
    at, shape = file.face.layouts[name], file.face.shapes[name]
    if at is None or at.along is None:
        return file.shape(shape)
    words = [_total(file, name) if n == at.along else file.text(d) for n, d in enumerate(shape) if n != at.batch]
    return f"({', '.join(words)},)"


def _table(file: PackedFile) -> Iterator[str]:
    """The table that kernels look documents up in."""
    yield "q_len, k_len = cu_seqlens[1:] - cu_seqlens[:-1], ends_k[1:] - ends_k[:-1]"
    offset = "k_len - q_len" if file.face.keys else "torch.zeros_like(q_len)"
    counts = ", ".join(_counted(file, length) for length in file.face.packing.visible)
    yield f"{TABLE} = documents(cu_seqlens, q_len, ends_k, k_len, {offset}, [{counts}])"


def _counted(file: PackedFile, length: Expr) -> str:
    """A length of every document as an expression of tensors, held to the rows of the first input that has it."""
    name = next(n for n, _ in _axes(file) if file.face.shapes[n][_along(file, n)] == length)
    each = re.sub(r"\bTK\b", "k_len", re.sub(r"\bTQ\b", "q_len", file.text(length)))
    return f'counted("{name}", {each}, {_total(file, name)})'


def _returned(file: PackedFile, number: int) -> str:
    """An output without the batch of one."""
    name, at = named(file.plan.outputs[number]), file.compiled.packed.results[number]
    return name if at is None or at.along is None else f"{name}.squeeze({at.batch})"
