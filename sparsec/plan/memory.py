"""Order, lifetimes and peak memory of a plan, on a networkx graph of its kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.plan.plan import Kernel, Plan, PlanError


def ordered(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The kernels so that each runs after those whose buffers it reads; the given order breaks ties."""
    import networkx

    writer = {name: k for k, kernel in enumerate(kernels) for name in kernel.writes}
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(kernels)))
    graph.add_edges_from((writer[r], k) for k, kernel in enumerate(kernels) for r in kernel.reads if r in writer)
    if not networkx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(kernels[a].name for a, _ in networkx.find_cycle(graph))
        raise PlanError(f"kernels wait for one another: {cycle}")
    return tuple(kernels[k] for k in networkx.lexicographical_topological_sort(graph))


def lifetimes(plan: Plan) -> dict[str, tuple[int, int]]:
    """First and last kernel (by position) that touches each temporary or output; outputs live to the end."""
    spans: dict[str, tuple[int, int]] = {}
    for k, kernel in enumerate(plan.kernels):
        for name in (*kernel.reads, *kernel.writes):
            if plan.buffer(name).role != "input":
                first, _ = spans.get(name, (k, k))
                spans[name] = (first, k)
    return {n: (a, len(plan.kernels) if n in plan.outputs else b) for n, (a, b) in spans.items()}


def peak_bytes(
    plan: Plan, dims: Mapping[str, int], inputs: bool = False, scratch: Mapping[str, int] | None = None
) -> int:
    """The most bytes of temporaries and outputs alive at once (and of the inputs, if asked).

    ``scratch`` has the bytes that a kernel by its name takes for itself while it runs.
    """
    own = scratch or {}
    spans = lifetimes(plan)
    sizes = {b.name: b.nbytes(dims) for b in plan.buffers}
    steps = range(len(plan.kernels))
    alive = (sum(sizes[n] for n, (a, b) in spans.items() if a <= k <= b) for k in steps)
    peak = max((held + own.get(plan.kernels[k].name, 0) for k, held in enumerate(alive)), default=0)
    return peak + (sum(sizes[b.name] for b in plan.buffers if b.role == "input") if inputs else 0)
