"""A variant: the graph of one attention layer with its inputs, outputs and the knobs that it was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from keyword import iskeyword

from sparsec.ir.blind import check_seen
from sparsec.ir.coerce import INDEX
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node, Shape, topological
from sparsec.ir.op import Op
from sparsec.ir.origin import Origin, here, origin_of, origins_of
from sparsec.ir.suggest import did_you_mean
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import variables


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a caller must give: dims as expressions, dtype "float" (the call's), "float32" or "int32"."""

    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"[{', '.join(str(dim) for dim in self.shape)}]" + ("" if self.dtype == "float" else f" {self.dtype}")


@dataclass(frozen=True, eq=False)
class Variant:
    """A declared layer. Two variants are equal if their inputs and outputs are the same nodes, whatever their names.

    Attributes:
        parameters: the input nodes in calling order.
        knobs: sorted pairs of the preset's knobs that made it; they do not take part in equality.
        names: a readable name for every node.
        origins: where its nodes were written, for errors.
    """

    name: str
    parameters: tuple[Node, ...]
    outputs: tuple[Node, ...]
    knobs: tuple[tuple[str, object], ...] = ()
    names: Mapping[Node, str] = field(default_factory=dict, repr=False)
    origins: Mapping[Node, Origin] = field(default_factory=dict, repr=False)

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """Input names with shapes and dtypes, in calling order."""
        return {str(node["name"]): InputSpec(node.shape, node.dtype) for node in self.parameters}

    @property
    def nodes(self) -> list[Node]:
        """Every node, sources first."""
        return topological(self.outputs)

    def text(self) -> str:
        """The variant as ``.sparsec`` text; ``sparsec.parse`` gives it back."""
        from sparsec.ir.printer import to_text

        return to_text(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical text: the same for equal graphs, whatever their nodes, knobs and file are called."""
        from sparsec.ir.printer import canonical_text

        return hashlib.sha256(canonical_text(self).encode()).hexdigest()

    def with_outputs(
        self,
        outputs: Sequence[Node],
        parameters: Sequence[Node] | None = None,
        names: Mapping[Node, str] | None = None,
    ) -> Variant:
        """The variant after a pass: new outputs; the same inputs and names for nodes unless others are given."""
        known = self.names if names is None else names
        inputs = self.parameters if parameters is None else tuple(parameters)
        done = replace(self, parameters=inputs, outputs=tuple(outputs), names={})
        kept = {node: known[node] for node in done.nodes if node in known}
        return replace(done, names=_names(done, kept), origins=origins_of(done.nodes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variant) and (self.parameters, self.outputs) == (other.parameters, other.outputs)

    def __hash__(self) -> int:
        return hash((self.parameters, self.outputs))

    def __str__(self) -> str:
        return self.text()


def variant(
    name: str,
    outputs: Node | Sequence[Node],
    parameters: Sequence[Node] | None = None,
    knobs: Mapping[str, object] | None = None,
) -> Variant:
    """A checked variant; without ``parameters`` its inputs are taken in the order in which the graph reaches them.

    Raises:
        DeclarationError: an unused or doubled input, a memory as output, a dim that no input has, a read that is proved
            to see nothing. A ``write`` as output is the states after the last token, fp32 ``[B,N,HKV,D,DV]``.
    """
    roots = tuple(outputs) if isinstance(outputs, Sequence) else () if outputs is None else (outputs,)
    _check_outputs(name, roots)
    found = [node for node in topological(roots) if node.op is Op.INPUT]
    done = Variant(
        name, tuple(found if parameters is None else parameters), roots, tuple(sorted((knobs or {}).items()))
    )
    _check_inputs(done, found)
    _check_dims(done)
    check_seen(done.nodes)
    return replace(done, names=_names(done), origins=origins_of(done.nodes))


RETURNED = ("tensor", "selection", "scores")
ARGUMENTS = ("self", "q_offset", "cu_seqlens", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "cache")
"""What calls and decode steps take beside inputs."""
LENGTHS = ("B", "TQ", "TK")


def _check_outputs(name: str, outputs: Sequence[object]) -> None:
    for node in outputs:
        if not isinstance(node, Node) or (node.kind not in RETURNED and node.op is not Op.WRITE):
            what = f"a {node.kind} ({node.op.value})" if isinstance(node, Node) else repr(node)
            fix = "attend or recall, then return"
            raise DeclarationError(f"variant {name}", f"returns {what}", "it returns tensors", fix, here())
    if not outputs:
        fix = "return attend(…)"
        raise DeclarationError(f"variant {name}", "returns nothing", "it returns at least one tensor", fix, here())


def _check_inputs(done: Variant, found: Sequence[Node]) -> None:
    seen: dict[str, Node] = {}
    for node in done.parameters:
        name, origin = str(node["name"]), origin_of(node)
        if name in seen:
            raise DeclarationError(
                f"input {name}", "declared twice", "each input has a name of its own", "rename one", origin
            )
        if node not in found:
            raise DeclarationError(
                f"input {name}", "never used", "an input takes part in the result", "use it or drop it", origin
            )
        _check_name(done, name, origin)
        seen[name] = node
    for node in found:
        if node not in done.parameters:
            fix = did_you_mean(str(node["name"]), seen)
            raise DeclarationError(
                f"input {node['name']}", "not a parameter", "inputs are declared", fix, origin_of(node)
            )


def _check_name(done: Variant, name: str, origin: Origin | None) -> None:
    """An input's name is free to be an argument, and means nothing else in expressions."""
    taken = dict.fromkeys(ARGUMENTS, "an argument of every compiled variant")
    taken |= dict.fromkeys(LENGTHS, "a length that every kernel takes")
    taken |= dict.fromkeys(dim_names(done), "also a dim")
    if any(name in node.captures for node in done.nodes):
        taken |= dict.fromkeys(INDEX, "an index variable of the expressions that read it")
    if name in taken or iskeyword(name):
        meaning = taken.get(name, "a word of Python")
        raise DeclarationError(
            f"input {name}", f"`{name}`", f"it is {meaning}", f"call the input {name}_in, say", origin
        )


def _check_dims(done: Variant) -> None:
    """Every free name of an expression is a dim of some input; a dim is called nothing that expressions call else."""
    dims = dim_names(done)
    for name in sorted(dims & (INDEX | {"q_offset"})):
        rule = f"`{name}` is an index variable of expressions, or the position of the first query"
        raise DeclarationError(f"variant {done.name}", f"the dim {name}", rule, f"call the dim {name.upper()}_ or so")
    known = dims | INDEX
    for node in done.nodes:
        for attr, value in node.attrs:
            for name in variables(value) if isinstance(value, Expr) else ():
                if name not in known:
                    rule, fix = f"`{name}` is no dim of any input", did_you_mean(name, dims)
                    raise DeclarationError(node.op.value, f"{attr} = {value}", rule, fix, origin_of(node))


def dim_names(done: Variant) -> set[str]:
    """The names that the input shapes use."""
    return {name for node in done.parameters for dim in node.shape for name in variables(dim)}


_UNNAMED = {
    Op.MAP: "mapped",
    Op.MASK: "visible",
    Op.TOKENS: "memory",
    Op.SLOTS: "persistent",
    Op.SUMMARY: "summaries",
    Op.SCORE: "scores",
    Op.REDUCE: "reduced",
    Op.TOPK: "chosen",
    Op.GIVEN: "chosen",
    Op.WEIGHTS: "weight",
    Op.ATTEND: "out",
    Op.RECALL: "out",
    Op.MERGE: "out",
    Op.VJP: "grad",
}


def _names(done: Variant, kept: Mapping[Node, str] | None = None) -> dict[Node, str]:
    """Inputs keep their names; others take the name they were given, else their op's, numbered where it is taken."""
    names = {node: str(node["name"]) for node in done.parameters} | dict(kept or {})
    taken = set(names.values())
    for node in done.nodes:
        if node not in names:
            origin = origin_of(node)
            base = origin.name if origin and origin.name else _UNNAMED.get(node.op, node.op.value)
            names[node] = next(name for name in numbered(base) if name not in taken)
            taken.add(names[node])
    return names


def numbered(base: str) -> Iterator[str]:
    """A name, and what it may be called instead where it is taken: name_2, name_3, …"""
    yield base
    yield from (f"{base}_{n}" for n in count(2))
