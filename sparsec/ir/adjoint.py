"""What the adjoint of an op may be asked for: every tensor that it reads and has a slope in, by the word ``of``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sparsec.ir.node import Node, Shape
from sparsec.ir.op import Op

Part = Literal["value", "k", "v", "lse"]
Key = tuple[str, str | None]
"""``of`` and, for ``of = capture``, the captured tensor's name."""


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor that a primal reads.

    Attributes:
        place: of the source among ``primal.src``.
        part: which of the source's tensors: its value, a memory's keys or values, an output's log-sum-exp.
        shape: of the tensor, and of its gradient; a memory's keys are shaped like the tensor that they are made of.
    """

    place: int
    part: Part
    shape: Shape
    dtype: str


def targets(primal: Node) -> dict[Key, Target]:
    """Everything that a gradient may be taken for; empty for an op without an adjoint."""
    row = TARGETS.get(primal.op)
    found: dict[Key, Target] = {(of, None): target for of, target in row(primal).items()} if row is not None else {}
    if found:
        first = len(primal.src) - len(primal.captures)
        found |= {("capture", name): _value(primal, first + n) for n, name in enumerate(primal.captures)}
    return {key: target for key, target in found.items() if target.dtype != "int32"}


def key_of(vjp: Node) -> Key:
    """What a ``vjp`` node is the gradient of."""
    capture = vjp["capture"]
    return vjp.word("of"), None if capture is None else str(capture)


def cotangent_shape(primal: Node, of: str) -> Shape:
    """The shape of the cotangent that a gradient is computed from: the primal's, or its keys' or values'."""
    return field(primal, "v" if of == "v" else "k")[0] if primal.kind == "memory" else primal.shape


def handed_back(vjp: Node) -> bool:
    """Whether an adjoint is what a reader hands back to a written state."""
    primal, of = vjp.src[0], vjp.word("of")
    return (
        primal.op in (Op.RECALL, Op.SURPRISE)
        and of.startswith("state")
        and primal.src[targets(primal)[of, None].place].kind == "state"
    )


def field(memory: Node, part: Literal["k", "v"]) -> tuple[Shape, str]:
    """The shape and dtype of a memory's keys or values, without a batch where they are learned."""
    at = "kv".index(part)
    if memory.op in (Op.TOKENS, Op.SLOTS):
        return memory.src[at].shape, memory.src[at].dtype
    return (*memory.shape[:3], memory.shape[3 + at]), memory.dtype


def _value(primal: Node, place: int) -> Target:
    source = primal.src[place]
    return Target(place, "value", source.shape, source.dtype)


def _field(primal: Node, place: int, part: Literal["k", "v"]) -> Target:
    return Target(place, part, *field(primal.src[place], part))


def _operands(primal: Node) -> dict[str, Target]:
    first = len(primal.positional)
    return {name: _value(primal, first + n) for n, name in enumerate(primal.operands)}


def _attend(node: Node) -> dict[str, Target]:
    found = {"q": _value(node, 0), "k": _field(node, 1, "k"), "v": _field(node, 1, "v"), **_operands(node)}
    chosen = next((n for n, s in enumerate(node.positional) if passes_straight(s) and node["per"] == "joint"), None)
    if chosen is not None:
        found["list"] = Target(chosen, "value", node.src[chosen].shape, "float32")
    return found


def passes_straight(selection: Node) -> bool:
    """Whether a choice passes the gradient of what it lets through to the scores of the chosen."""
    return selection.op is Op.TOPK and selection.word("selector_gradient") == "straight_through"


def _summary(node: Node) -> dict[str, Target]:
    keys = {"given": _value(node, 1)} if node["fn"] == "given" else {"k": _field(node, 0, "k")}
    return {**keys, "v": _field(node, 0, "v")} if node["fields"] == "kv" else keys


def _score(node: Node) -> dict[str, Target]:
    kind = node.src[1].kind
    if kind == "state":
        return {}
    keys = _field(node, 1, "k") if kind == "memory" else _value(node, 1)
    return {"q": _value(node, 0), "keys": keys, **_operands(node)}


def _merge(node: Node) -> dict[str, Target]:
    found = _by_place(node)
    if node["fn"] == "lse":
        found |= {f"lse{n}": Target(n, "lse", x.shape[:3], "float32") for n, x in enumerate(node.src)}
    return found


def _recall(node: Node) -> dict[str, Target]:
    states = {f"state{n}": _value(node, 1 + n) for n in range(len(node.positional) - 1)}
    return {"q": _value(node, 0), **states, **_operands(node)}


def _write(node: Node) -> dict[str, Target]:
    return {"state": _value(node, 0), "k": _value(node, 1), "v": _value(node, 2), **_operands(node)}


def _state(node: Node) -> dict[str, Target]:
    return {"initial": _value(node, 0)} if node.src else {}


def _surprise(node: Node) -> dict[str, Target]:
    return {"state0": _value(node, 0)}


def _row(node: Node) -> dict[str, Target]:
    return {"x": _value(node, 0)}


def _mass(node: Node) -> dict[str, Target]:
    return {"k": _value(node, 0), **_operands(node)}


def _mixture(node: Node) -> dict[str, Target]:
    found = {f"z{n}": _value(node, 1 + n) for n in range(len(node.positional) - 1)}
    return {"q": _value(node, 0), **found, **_operands(node)}


def _by_place(node: Node) -> dict[str, Target]:
    return {f"x{n}": _value(node, n) for n in range(len(node.src))}


def _scores(node: Node) -> dict[str, Target]:
    return {"scores": _value(node, 0)}


def _topk(node: Node) -> dict[str, Target]:
    return _scores(node) if passes_straight(node) else {}


def _aux(node: Node) -> dict[str, Target]:
    return _scores(node) if node["fn"] in ("kl", "balance") else {}


TARGETS: dict[Op, Callable[[Node], dict[str, Target]]] = {
    Op.MAP: _by_place,
    Op.PREFIX: lambda node: {"x": _value(node, 0)},
    Op.SUMMARY: _summary,
    Op.SCORE: _score,
    Op.BIAS: _scores,
    Op.REDUCE: _scores,
    Op.WEIGHTS: _scores,
    Op.ATTEND: _attend,
    Op.SURPRISE: _surprise,
    Op.NORM2: _row,
    Op.ROW_LSE: _row,
    Op.MASS: _mass,
    Op.MIXTURE: _mixture,
    Op.STATE: _state,
    Op.WRITE: _write,
    Op.RECALL: _recall,
    Op.MERGE: _merge,
    Op.TOPK: _topk,
    Op.AUX: _aux,
}
"""The ops with an adjoint; gates are among a merge's x0, x1, …"""
