"""Reverse differentiation: a variant -> the joint variant of its outputs and of the gradients of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from sparsec.ir import build
from sparsec.ir.error import InputError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.origin import written_as
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant, numbered
from sparsec.passes.depends import Place, depending
from sparsec.passes.vjp_rules import FLOWS, Flow
from sparsec.scalar.expr import Expr, var

MOST_TERMS = 16
"""The x0, x1, … that a map has names for."""


@dataclass(frozen=True, slots=True)
class Differentiated:
    """The joint variant, and what is what in it.

    Attributes:
        variant: parameters are the variant's own, then the cotangents; outputs are the variant's own, then the
            gradients that are not None.
        gradients: by input name, in the order asked for; None is exactly zero.
        cotangents: the input that holds the gradient of an output: one for an output that is returned twice, none for
            one that no gradient depends on.
    """

    variant: Variant
    gradients: Mapping[str, Node | None]
    cotangents: Mapping[Node, str]


def differentiate(variant: Variant, wrt: Sequence[str] | None = None) -> Differentiated:
    """Adds the gradients of some inputs, by default of every float input.

    o = attend(q, tokens(k, v))  ->  o, vjp(o, grad_o) {of = q}, vjp(o, grad_o) {of = k}, vjp(o, grad_o) {of = v}

    An input ``grad_<output name>`` of the output's shape and dtype joins the parameters; several gradients of one
    tensor are summed by one map; a log-sum-exp's gradient becomes ``lse_grad`` of its attend or merge.

    Raises:
        InputError: ``wrt`` names no input, or an integer one.
        DeclarationError: something on the way has no gradient yet, or the variant has gradients already.
    """
    inputs = _asked(variant, wrt)
    back = _Backward(variant, depending(variant, inputs.values()))
    cotangents = {node: back.seed(node) for node in dict.fromkeys(variant.outputs) if (node, "value") in back.reached}
    for node in reversed(variant.nodes):
        back.through(node)
    gradients = {name: back.total((node, "value")) for name, node in inputs.items()}
    found = [node for node in gradients.values() if node is not None]
    joint = variant.with_outputs((*variant.outputs, *found), (*variant.parameters, *cotangents.values()), back.names)
    named = {node: str(seed["name"]) for node, seed in cotangents.items()}
    return Differentiated(replace(joint, name=f"{variant.name}_grad"), gradients, named)


def _asked(variant: Variant, wrt: Sequence[str] | None) -> dict[str, Node]:
    """The inputs to differentiate by, by name."""
    inputs = {str(node["name"]): node for node in variant.parameters}
    floats = {name: node for name, node in inputs.items() if node.dtype != "int32"}
    if wrt is None:
        return floats
    for name in wrt:
        if name not in inputs:
            raise InputError(name, "unknown", f"{variant.name} has no such input", did_you_mean(name, floats))
        if name not in floats:
            raise InputError(name, "int32", "integers have no gradient", f"choose among {', '.join(floats)}")
    return {name: floats[name] for name in wrt}


@dataclass(slots=True)
class _Backward:
    """The walk from the outputs to the inputs.

    Attributes:
        names: of every node, old and new.
        terms: what has been found of each place's gradient so far.
    """

    variant: Variant
    reached: frozenset[Place]
    names: dict[Node, str] = field(init=False)
    taken: set[str] = field(init=False)
    terms: dict[Place, list[Node]] = field(default_factory=dict)
    totals: dict[Place, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = dict(self.variant.names)
        self.taken = set(self.names.values())

    def seed(self, output: Node) -> Node:
        """The input that holds an output's gradient."""
        name = self._free(f"grad_{self.names[output]}")
        with written_as(output):
            cotangent = build.input(name, output.shape, output.dtype)
        self._call(cotangent, name)
        self.terms.setdefault((output, "value"), []).append(cotangent)
        return cotangent

    def through(self, node: Node) -> None:
        """Hands the gradient of a node, which is complete, on to its sources."""
        for flow in FLOWS[node.op](node) if node.op in FLOWS else ():
            here = [(node, part) for part in flow.via if (node, part) in self.terms]
            if not here or (flow.source, flow.part) not in self.reached:
                continue
            into = self.terms.setdefault((flow.source, flow.part), [])
            with written_as(node):
                into.extend([self._adjoint(node, flow)] if flow.key else self.terms[here[0]])

    def _adjoint(self, node: Node, flow: Flow) -> Node:
        assert flow.key is not None
        if node.op is Op.WRITE:
            return build.vjp(node, *self._handed_back(node), of=flow.key[0])
        (of, capture), lse_grad = flow.key, self.total((node, "lse"))
        cotangent = self.total((node, flow.via[0]))
        if cotangent is None:  # only the log-sum-exp has one
            cotangent = build.map(node, fn=0.0)
            self._call(cotangent, f"no_grad_{self.names[node]}")
        return build.vjp(node, cotangent, of=of, capture=capture, lse_grad=lse_grad)

    def _handed_back(self, written: Node) -> list[Node]:
        """What the readers of written states hand back, which is listed and never summed."""
        terms = self.terms[written, "value"]
        for term in terms:
            self._call(term, f"grad_{self.names[written]}_{self.names[term.src[0]]}" if term.src else "")
        return terms

    def total(self, place: Place) -> Node | None:
        """The gradient of a place, summed and named; None for zero."""
        if place not in self.terms:
            return None
        if place not in self.totals:
            node, part = place
            name = f"grad_{self.names[node]}" + ("" if part == "value" else f"_{part}")
            with written_as(node):
                self.totals[place] = self._sum(self.terms[place], name)
        return self.totals[place]

    def _sum(self, terms: Sequence[Node], name: str) -> Node:
        if len(terms) > 1:
            for term in terms:
                self._call(term, f"{name}_{self.names[term.src[0]]}" if term.op is Op.VJP else name)
        while len(terms) > 1:
            first = build.map(*terms[:MOST_TERMS], fn=_plus(len(terms[:MOST_TERMS])))
            terms = [first, *terms[MOST_TERMS:]]
            self._call(first, name if len(terms) == 1 else f"{name}_part")
        self._call(terms[0], name)
        return terms[0]

    def _call(self, node: Node, name: str) -> None:
        """Names a node that has no name yet."""
        if node not in self.names:
            self.names[node] = self._free(name)
            self.taken.add(self.names[node])

    def _free(self, name: str) -> str:
        return next(free for free in numbered(name) if free not in self.taken)


def _plus(terms: int) -> Expr:
    return reduce(lambda total, x: total + x, (var(f"x{n}", "float") for n in range(terms)))
