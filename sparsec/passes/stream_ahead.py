"""What a decode step computes of new tokens before they join the cache: maps of keys, and of what has no tokens."""

from __future__ import annotations

from sparsec.ir.build import input as declared
from sparsec.ir.lengths import lengths
from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.scalar.walk import depends_on


def before_memory(variant: Variant) -> tuple[Variant | None, Variant]:
    """Maps of inputs that become memory, as a variant of their own, and the variant that takes their results.

    attend(q, tokens(map(k), v))  ->  (map(k) of the new tokens), attend(q, tokens(k_2, v))
    """
    cut = _cut(variant)
    if not cut:
        return None, variant
    inputs = {node: declared(name, node.shape, node.dtype) for node, name in cut.items()}
    outputs = rewrite(variant.outputs, (inputs.get,))
    rest = variant.with_outputs(outputs, [*_read(variant, outputs), *inputs.values()], _names(variant, inputs))
    ahead = variant.with_outputs(tuple(cut), _read(variant, tuple(cut)), {**variant.names, **cut})
    return ahead, rest


def _cut(variant: Variant) -> dict[Node, str]:
    """The maps to compute ahead, and what the step calls them: a captured one as its capture."""
    remembered = _remembered(variant)
    growing = {*lengths(variant).names, "B"}
    plain = _of_inputs(variant)
    fixed = {n for n in plain if not any(depends_on(dim, *growing) for dim in n.shape)}
    inner = {s for n in plain for s in n.src}
    wanted = [n for n in variant.nodes if n in plain and (n in remembered or (n in fixed and n not in inner))]
    return {n: remembered.get(n) or variant.names[n] for n in wanted}


def _of_inputs(variant: Variant) -> set[Node]:
    """The maps of inputs, or of such maps."""
    found: set[Node] = set()
    for node in variant.nodes:
        if node.op is Op.MAP and all(s.op is Op.INPUT or s in found for s in node.src):
            found.add(node)
    return found


def _remembered(variant: Variant) -> dict[Node, str | None]:
    """What becomes memory, with the name of what a mask or bias captures."""
    found: dict[Node, str | None] = {}
    for node in variant.nodes:
        if node.op in (Op.TOKENS, Op.SLOTS, Op.PREFIX):
            found |= dict.fromkeys(node.src)
        if node.op in (Op.SCORE, Op.SUMMARY):
            found |= dict.fromkeys(node.positional[1:])
    for node in variant.nodes:
        found |= {source: name for name, source in node.captures.items()}
    return found


def _read(variant: Variant, outputs: tuple[Node, ...]) -> list[Node]:
    """The inputs that outputs depend on, in the order of the variant."""
    used = set(topological(outputs))
    return [node for node in variant.parameters if node in used]


def _names(variant: Variant, inputs: dict[Node, Node]) -> dict[Node, str]:
    return {**variant.names, **{made: str(made["name"]) for made in inputs.values()}}
