"""Matrix states on a Fenwick schedule: one kernel for what reads them, one for all gradients through them."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.plan.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.gradient_scan import cotangents, dtype_of, given, made, wanted
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.scan import buffers, dims, operand, writes_of
from sparsec.plan.scan_specs import Operand, Read


def ladder(planner: Planner, reader: Node, dtype: str) -> None:
    """Plan the kernel of a recall of levels; its output is of ``dtype``."""
    written = reader.src[1]
    _alone(planner, reader)
    asked = _asked(planner, reader)
    out = Operand(planner.temporary(reader, "o", reader.shape, dtype), dtype)
    spec = _spec(planner, reader, f"ladder_{out.name}", asked, out)
    read = [*buffers(spec.writes), asked.name, spec.gate.name]
    planner.add(spec, read, [out.name], [reader], dims(written))


def ladder_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernel of all gradients through the levels that an adjoint is about."""
    primal = vjp.src[0]
    written = primal.src[1] if primal.op.name == "RECALL" else primal
    nodes = wanted(planner, written)
    (reader, grad), *more = cotangents(planner, written, nodes)[0].items()
    if more:
        raise planner.refuse(written, "levels have one reader; add up weights rather than recalls")
    asked = _asked(planner, reader)
    done = {node.word("of"): made(planner, node) for node in nodes}
    do = given(source(grad, dtype_of(planner, reader)), planner)
    first = next(iter(done.values())).name
    forward = _spec(planner, reader, f"ladder_of_{first}", asked, Operand(f"{reader.op.value}", "float32"))
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
    )
    read = [*buffers(forward.writes), asked.name, forward.gate.name, do.name]
    planner.add(spec, read, [x.name for x in done.values()], nodes, dims(written))


def _alone(planner: Planner, reader: Node) -> None:
    if len(planner.recalls.get(reader.src[1], ())) > 1:
        raise planner.refuse(reader, "levels have one reader; add up weights rather than recalls")


def _asked(planner: Planner, reader: Node) -> Operand:
    return operand(planner, reader.src[0])


def _spec(planner: Planner, reader: Node, name: str, asked: Operand, out: Operand) -> Ladder:
    honours(planner, reader, "mode", "when", "scale", "renormalise")
    written = reader.src[1]
    writes = writes_of(planner, written, "parts", "schedule")
    if writes.decay_kind == "key" or writes.erase is not None or writes.reads == "undecayed":
        what = "erase vectors, undecayed reads and decays per key channel"
        raise planner.refuse(written, f"levels with {what} have no kernel yet; the oracle runs them")
    heads = planner.sizes.value(reader.shape[2])
    asking = planner.sizes.value(reader.src[0].shape[2])
    if not heads == asking == writes.heads == writes.key_heads:
        said = f"{asking} query, {writes.key_heads} key and {writes.heads} value heads"
        raise planner.refuse(reader, f"{said}: levels are read by as many heads as write them; repeat the fewer")
    scale = reader["scale"]
    number = float(scale) if isinstance(scale, float | int) else planner.sizes.number(reader.expr("scale"))  # type: ignore[arg-type]
    read = Read(asked, out, heads, number)
    gate = operand(planner, reader.operands["level_gate"])
    levels = written.src[0].integer("parts")
    return Ladder(name, writes, read, gate, levels, planner.sizes.dtype)
