"""Matrix states on a Fenwick schedule: one kernel for what reads them, one for all gradients through them."""

from __future__ import annotations

from dataclasses import replace

from sparsec.ir.node import Node
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan import buffers, dims, operand, writes_of
from sparsec.plan.states.scan_gradient import cotangents, dtype_of, given, made, wanted
from sparsec.plan.states.scan_specs import Operand, Read


def ladder(planner: Planner, written: Node) -> None:
    """Plan the kernel of written levels, once: their recall, and what they leave where that is a result."""
    if written in planner.specs:
        return
    reader = _reader(planner, written)
    dtype = dtype_of(planner, reader)
    out = Operand(planner.temporary(reader, "o", reader.shape, dtype), dtype)
    spec = _spec(planner, reader, f"ladder_{out.name}", out)
    if written in planner.finals:
        spec = replace(spec, final=planner.temporary(written, "tensor", written.shape, "float32"))
    planner.specs[written] = spec
    read = [*buffers(spec.writes), spec.read.q.name, spec.gate.name, *([spec.initial] if spec.initial else [])]
    made = [out.name, *([spec.final] if spec.final else [])]
    planner.add(spec, read, made, [reader, *([written] if spec.final else [])], dims(written))


def ladder_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of all gradients through the levels that an adjoint is about."""
    written = vjp.src[0].src[1] if vjp.src[0].op.name == "RECALL" else vjp.src[0]
    reader, nodes = _reader(planner, written), wanted(planner, written)
    grads, final = cotangents(planner, written, nodes)
    done = {node.word("of"): made(planner, node) for node in nodes}
    do = given(source(grads[reader], dtype_of(planner, reader)), planner)
    first = next(iter(done.values())).name
    forward = _spec(planner, reader, f"ladder_of_{first}", Operand(f"{reader.op.value}", "float32"))
    grad_final, initial = source(final, "float32") if final is not None else None, done.get("state")
    spec = LadderGrad(
        name=f"grad_{first}",
        forward=forward,
        grad=do,
        grad_q=done.get("q"),
        grad_k=done.get("k"),
        grad_v=done.get("v"),
        grad_beta=done.get("beta"),
        grad_decay=done.get("decay"),
        grad_gate=done.get("level_gate"),
        grad_erase=(done.get("erase_a"), done.get("erase_b")),
        grad_initial=initial.name if initial is not None else None,
        grad_final=grad_final,
    )
    outside = [name for name in (forward.initial, grad_final) if name is not None]
    read = [*buffers(forward.writes), forward.read.q.name, forward.gate.name, do.name, *outside]
    planner.add(spec, read, [x.name for x in done.values()], nodes, dims(written))


def unchunked(spec: Ladder | LadderGrad) -> str | None:
    """What of a ladder has no form in chunks, to be followed by what there is not; None where all has.

    Heads may share queries, keys and states where gradients are taken.
    """
    shared, ending = isinstance(spec, LadderGrad), spec.grad_final if isinstance(spec, LadderGrad) else spec.final
    spec = spec.forward if isinstance(spec, LadderGrad) else spec
    w = spec.writes
    if spec.initial is not None or ending is not None:
        return "levels that begin or end outside the call have"
    if w.decay_kind == "key" or w.erase is not None or (w.reads == "undecayed" and w.rule == "delta"):
        return "levels with erase vectors, undecayed reads or decays per key channel have"
    counts = {spec.read.heads, spec.read.query_heads or spec.read.heads, w.heads, w.key_heads or w.heads}
    return "levels that several heads of queries or states share have" if len(counts) > 1 and not shared else None


def _reader(planner: Planner, written: Node) -> Node:
    """The one recall of levels."""
    readers = planner.recalls.get(written, ())
    if len(readers) != 1:
        raise planner.refuse(written, f"levels have one reader, not {len(readers)}; add up weights rather than recalls")
    return readers[0]


def _spec(planner: Planner, reader: Node, name: str, out: Operand) -> Ladder:
    honours(planner, reader, "mode", "when", "scale", "renormalise")
    written = reader.src[1]
    bank = written.src[0]
    writes = writes_of(planner, written, "parts", "schedule")
    if bank.src and len(bank.src[0].shape) < 5:
        raise planner.refuse(bank, "first levels of its own for every batch entry are wanted: [B,parts,HKV,D,DV]")
    heads, asking = (planner.sizes.value(x.shape[2]) for x in (reader, reader.src[0]))
    scale = reader["scale"]
    number = float(scale) if isinstance(scale, float | int) else planner.sizes.number(reader.expr("scale"))  # type: ignore[arg-type]
    read = Read(operand(planner, reader.src[0]), out, heads, number, query_heads=asking)
    gate = operand(planner, reader.operands["level_gate"])
    alone = replace(writes, initial=None)
    return Ladder(name, alone, read, gate, bank.integer("parts"), planner.sizes.dtype, writes.initial)
