"""The adjoint of matrix states: one kernel per written bank for all gradients that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.scores import ONE
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.states.scan import buffers, dims, question, writes_of
from sparsec.plan.states.scan_specs import Operand, Read, Scan, ScanGrad, StatesSum


def scan_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of all gradients through the bank that an adjoint is about."""
    primal = vjp.src[0]
    if primal.op is Op.STATE:
        _shared(planner, vjp, source)
        return
    written = primal if primal.op is Op.WRITE else primal.src[1]
    nodes = wanted(planner, written)
    grads, final = cotangents(planner, written, nodes)
    surprised = [grads.pop(reader) for reader in tuple(grads) if reader.op is Op.SURPRISE]
    surprise = [given(source(grad, "float32"), planner) for grad in surprised]
    writes = writes_of(planner, written, units=True)
    done = {node: made(planner, node) for node in nodes}
    own = {node.word("of"): operand for node, operand in done.items() if node.src[0] is written}
    asked = {node.src[0]: operand for node, operand in done.items() if node.src[0] is not written}
    reads = tuple(replace(_asked(planner, written, r), out=Operand(f"{r.op.value}", "float32")) for r in grads)
    handed = tuple(given(source(grad, dtype_of(planner, r)), planner) for r, grad in grads.items())
    names = [operand.name for operand in done.values()]
    grad_final = source(final, "float32") if final is not None else None
    initial = own.get("state")
    spec = ScanGrad(
        name=f"grad_{names[0]}",
        forward=Scan(f"scan_of_{names[0]}", writes, reads, planner.sizes.dtype),
        grads=handed,
        grad_final=grad_final,
        grad_q=tuple(asked.get(r) for r in grads),
        grad_k=own.get("k"),
        grad_v=own.get("v"),
        grad_beta=own.get("beta"),
        grad_decay=own.get("decay"),
        grad_erase=(own.get("erase_a"), own.get("erase_b")),
        grad_initial=initial.name if initial is not None else None,
        grad_weight=own.get("weight"),
        surprise=surprise[0] if surprise else None,
    )
    read = [
        *buffers(writes),
        *(r.q.name for r in reads),
        *(g.name for g in (*handed, *surprise)),
        *([grad_final] if grad_final else []),
    ]
    planner.add(spec, read, names, nodes, dims(written))


def _asked(planner: Planner, written: Node, reader: Node) -> Read:
    """What a reader asks; parts whose weights multiply sorted queries take unit vectors as they are stored."""
    weighed = "route" in written.operands and not reader.flag("renormalise") and reader["slot"] is None
    return question(planner, written, reader, units=not weighed)


def _shared(planner: Planner, vjp: Node, source: Source) -> None:
    """First states that all batch entries share: the sum of what each of them asks for."""
    states_sum(planner, vjp, [source(vjp.positional[1], "float32")])


def states_sum(planner: Planner, node: Node, terms: Sequence[str]) -> None:
    """Plan the kernel that adds up gradients of first states, over batch entries too where the sum has none."""
    out = planner.temporary(node, "tensor", node.shape, "float32")
    parts, heads, rows, cols = (planner.sizes.value(dim) for dim in node.shape[-4:])
    batched = len(node.shape) == 5
    spec = StatesSum(f"total_{out}", tuple(terms), out, heads, rows, cols, parts=parts, batched=batched)
    planner.add(spec, terms, [out], [node], {"TQ": ONE, "TK": ONE})


def wanted(planner: Planner, written: Node) -> list[Node]:
    """The adjoints through a bank that are arrays."""
    readers = planner.recalls.get(written, ())
    return [v for v in planner.vjps if v.kind == "tensor" and (v.src[0] is written or v.src[0] in readers)]


def cotangents(planner: Planner, written: Node, wanted: list[Node]) -> tuple[dict[Node, Node], Node | None]:
    """The gradient of each reader's output, by reader, and that of the final states."""
    found: dict[Node, Node] = {}
    final: Node | None = None
    for vjp in wanted:
        for cotangent in vjp.positional[1:]:
            if vjp.src[0] is not written:
                found.setdefault(vjp.src[0], cotangent)
            elif cotangent.kind == "cotangent":
                found.setdefault(cotangent.src[0], cotangent.src[1])
            else:
                final = cotangent
    return found, final


def made(planner: Planner, vjp: Node) -> Operand:
    """The buffer of a gradient."""
    dtype = planner.precision(vjp, planner.sizes.dtype_of(vjp))
    return Operand(planner.temporary(vjp, "tensor", vjp.shape, dtype), dtype)


def dtype_of(planner: Planner, reader: Node) -> str:
    """Of the gradient of what a reader was answered: exact where the answer is."""
    return "float32" if reader in planner.exact else planner.sizes.dtype


def given(name: str, planner: Planner) -> Operand:
    """A buffer as an operand."""
    return Operand(name, planner.buffers[name].dtype)
