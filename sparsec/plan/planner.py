"""The state of planning one variant: kernels so far, and the buffer that holds each node's value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.schema import MAPPED
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Buffer, Kernel, PlanError
from sparsec.plan.pull import Pull
from sparsec.plan.sizes import Sizes
from sparsec.plan.specs import DIM, Capture, Summarise
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.walk import substitute, variables

Place = tuple[Node, str]
"""A node and which of its values: "o", "lse", "k", "v", "indices", "weights" or "tensor"; "k_exact" is "k" in fp32.

What goes from one backward kernel to another: "delta" of an output, "chosen" gradients of scores.
"""

INDEX_NAMES = frozenset({"b", "h", "i", "j", "c", "score"}) | MAPPED.keys()
ALWAYS = {"B": var("B"), "q_offset": var("q_offset")}
"""Launch parameters of every kernel."""


@dataclass(slots=True)
class Planner:
    """Collects kernels and buffers; one method call per kernel.

    Attributes:
        lse_of: the attends and merges whose log-sum-exp is read.
        vjps: every adjoint of the graph.
        inner: the adjoints that are no results but go on into others, kept in fp32.
        specs: the forward kernel of each attend, merge and topk.
        deltas: the rowdot of each output and its gradient.
        summaries: the forward kernel of each summary's keys or values.
        score_grads: the gradient of the chosen scores, by the adjoint of their weights.
        inputs: the names that belong to inputs, planned or not.
        producers: by op, what plans a tensor that kernels read and gives its buffer.
        exact: the maps and outputs that are kept in fp32, whatever their sources are.
        units: the unit vectors that scans make as they read what these are of.
        merged: what merges read, which is kept in fp32 too.
        absorbed: the gates' functions that a merge applies itself.
        inlined: the maps that one other map computes on the way, and that map.
        batch: the number of batch entries; 1 for a variant without a batch.
        readers: how many sources of nodes, adjoints left out, and results each node is.
        recalls: those of every written bank.
        weights: the weights of every choice that has some.
        compared: the choices whose own scores a loss compares with the attention that they got.
        finals: the written banks whose last states are results.
    """

    sizes: Sizes
    names: dict[Node, str]
    token_length: Expr
    lse_of: frozenset[Node] = frozenset()
    kernels: list[Kernel] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    places: dict[Place, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    vjps: tuple[Node, ...] = ()
    inner: frozenset[Node] = frozenset()
    specs: dict[Node, AnySpec] = field(default_factory=dict)
    deltas: dict[Pull, str] = field(default_factory=dict)
    summaries: dict[Place, Summarise] = field(default_factory=dict)
    score_grads: dict[Node, str] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()
    producers: Mapping[Op, Callable[[Planner, Node], str]] = field(default_factory=dict)
    exact: frozenset[Node] = frozenset()
    units: frozenset[Node] = frozenset()
    merged: frozenset[Node] = frozenset()
    batch: Expr = ALWAYS["B"]
    absorbed: set[Node] = field(default_factory=set)
    inlined: dict[Node, Node] = field(default_factory=dict)
    readers: Mapping[Node, int] = field(default_factory=dict)
    recalls: Mapping[Node, tuple[Node, ...]] = field(default_factory=dict)
    weights: Mapping[Node, Node] = field(default_factory=dict)
    finals: frozenset[Node] = frozenset()
    compared: frozenset[Node] = frozenset()
    linear: Mapping[Node, Node] = field(default_factory=dict)

    def name(self, node: Node) -> str:
        """The node's name in the text."""
        return self.names[node]

    def refuse(self, node: Node, reason: str) -> PlanError:
        """The error that no kernel computes this node."""
        return PlanError(f"{node.op.value} `{self.name(node)}`: {reason}")

    def input(self, node: Node) -> str:
        """The buffer of a tensor that kernels read; what is computed is planned on first use."""
        if node.op is Op.INPUT:
            name = str(node["name"])
            self.buffers.setdefault(name, Buffer(name, node.shape, self.sizes.dtype_of(node), "input"))
            self.places[node, "tensor"] = name
            return name
        if (node, "o") in self.places:
            return self.places[node, "o"]
        if node.op in self.producers:
            return self.producers[node.op](self, node)
        known = ", ".join(("inputs", *(f"{op.value}s" for op in self.producers)))
        raise self.refuse(node, f"kernels read tensors of {known} here; compute this before the call")

    def temporary(self, node: Node, part: str, shape: Iterable[Expr], dtype: str) -> str:
        """A new buffer for one value of a node."""
        own = part in ("o", "indices", "tensor")
        name = self.fresh(self.name(node) if own else f"{self.name(node)}_{part}", shape, dtype)
        self.places[node, part] = name
        return name

    def fresh(self, name: str, shape: Iterable[Expr], dtype: str) -> str:
        """A new buffer that is no node's value."""
        while name in self.buffers or name in self.inputs:
            name += "_"
        self.buffers[name] = Buffer(name, tuple(shape), dtype, "temporary")
        return name

    def retype(self, names: Iterable[str], dtype: str) -> None:
        """Give buffers another dtype."""
        for name in names:
            self.buffers[name] = replace(self.buffers[name], dtype=dtype)

    def precision(self, vjp: Node, dtype: str) -> str:
        """The dtype of an adjoint: fp32 where it goes on into others, else what is asked for."""
        return "float32" if vjp in self.inner else dtype

    def close(self, expr: Expr | None, params: dict[str, Expr]) -> Expr | None:
        """The expression with static dims put in; what else it reads joins the kernel's ``params``.

        A dim keeps its name where the parameter of that name is this dim; otherwise it gets one that no parameter of
        the planner's own can have.
        """
        closed = self.sizes.close(expr)
        if closed is None:
            return None
        known = {**ALWAYS, **params}
        dims = [n for n in variables(closed) if n not in INDEX_NAMES and known.get(n) is not var(n)]
        params |= {DIM + n: var(n) for n in dims}
        return substitute(closed, {n: var(DIM + n) for n in dims})

    def captures(self, node: Node, params: dict[str, Expr]) -> tuple[Capture, ...]:
        """The captured tensors of a mask or bias, as kernel inputs; what their extents read joins ``params``."""
        found = []
        for name, source in node.captures.items():
            buffer = self.places.get((source, "tensor")) or self.input(source)
            if buffer != name:
                raise self.refuse(node, f"captures `{buffer}` under another name `{name}`; use its own, no operand's")
            shape = tuple(self._extent(name, d, dim, params) for d, dim in enumerate(source.shape))
            found.append(Capture(name, self.buffers[buffer].dtype, len(shape), shape))
        return tuple(found)

    def _extent(self, name: str, d: int, dim: Expr, params: dict[str, Expr]) -> int | str:
        """An extent of a captured tensor: a number, or the launch parameter that has it."""
        closed = self.close(dim, params)
        assert closed is not None
        if closed.head == "const":
            return int(closed.value or 0)
        if closed.head == "var":
            return str(closed.value)
        params[f"{DIM}{d}_{name}"] = dim
        return f"{DIM}{d}_{name}"

    def add(
        self,
        spec: AnySpec,
        reads: Iterable[str],
        writes: Iterable[str],
        covers: Iterable[Node],
        dims: dict[str, Expr],
    ) -> None:
        """Append a kernel; ``dims`` are its launch parameters beside those that every kernel has."""
        params = {**ALWAYS, "B": self.batch, **dims}
        nodes = tuple(covers)
        inverse = {buffer: (node, part.removesuffix("_exact")) for (node, part), buffer in self.places.items()}
        reads, writes = tuple(dict.fromkeys(reads)), tuple(writes)
        self.kernels.append(
            Kernel(
                spec,
                reads,
                writes,
                tuple(self.name(n) for n in nodes),
                tuple(params.items()),
                tuple((b, *inverse[b]) for b in reads if b in inverse),
                tuple((b, *inverse[b]) for b in writes if b in inverse),
            )
        )

    def follow(
        self, owner: Node, spec: AnySpec, reads: Iterable[str], writes: Iterable[str], covers: Iterable[Node]
    ) -> None:
        """Append a backward kernel, with the launch parameters of the forward kernel of ``owner``."""
        params = next(k.params for k in self.kernels if k.spec is self.specs[owner])
        self.add(spec, reads, writes, covers, {n: value for n, value in params if n not in ALWAYS})
