"""Sums of gradients that a kernel makes on the way: what gathers queries' gradients begins with the other terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sparsec.plan.grad_specs import GatheredGradQ, Total
from sparsec.plan.plan import Kernel


def added(kernels: Sequence[Kernel], kept: Iterable[str]) -> list[Kernel]:
    """Kernels whose sums in fp32 are left to the one that makes the last term; buffers that are ``kept`` stay."""
    found, outputs = list(kernels), set(kept)
    for kernel in kernels:
        taker = _taker(found, kernel, outputs)
        if taker is not None:
            found[found.index(taker)] = _with_terms(taker, kernel)
            found.remove(kernel)
    return found


def _taker(kernels: Sequence[Kernel], kernel: Kernel, outputs: set[str]) -> Kernel | None:
    """The kernel that may add a sum's other terms to its own, which nothing else reads."""
    spec = kernel.spec
    if not isinstance(spec, Total) or not spec.batched or set(spec.term_dtypes) != {"float32"}:
        return None
    for other in kernels:
        made = other.spec
        if not isinstance(made, GatheredGradQ) or made.grad_q not in spec.terms or made.grad_q in outputs:
            continue
        readers = [k for k in kernels if made.grad_q in k.reads]
        waits = _before(kernels, set(spec.terms) - {made.grad_q})
        if readers == [kernel] and other not in waits and spec.terms.count(made.grad_q) == 1:
            return other
    return None


def _before(kernels: Sequence[Kernel], names: set[str]) -> list[Kernel]:
    """The kernels that must have run before some buffers are there."""
    found: list[Kernel] = []
    while writers := [k for k in kernels if k not in found and names & set(k.writes)]:
        found += writers
        names = names | {name for k in writers for name in k.reads}
    return found


def _with_terms(taker: Kernel, kernel: Kernel) -> Kernel:
    """A kernel that makes a sum of its gradient of the queries and the other terms."""
    spec, total = taker.spec, kernel.spec
    assert isinstance(spec, GatheredGradQ) and isinstance(total, Total)
    own, others = spec.grad_q, tuple(name for name in total.terms if name != spec.grad_q)
    return replace(
        taker,
        spec=replace(spec, grad_q=total.out, out_dtype=total.out_dtype, terms=others),
        reads=(*taker.reads, *others),
        writes=tuple(total.out if name == own else name for name in taker.writes),
        covers=(*taker.covers, *kernel.covers),
        sources=tuple(dict.fromkeys((*taker.sources, *(s for s in kernel.sources if s[0] != own)))),
        results=(*(r for r in taker.results if r[0] != own), *kernel.results),
    )
