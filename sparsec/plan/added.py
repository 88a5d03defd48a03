"""Sums of gradients made on the way: a kernel that makes a term of a sum, row by row, adds the others to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce

from sparsec.plan.grad_specs import AnySpec, GatheredGradQ, Total
from sparsec.plan.maps.map_specs import Map, MapSource, symbol
from sparsec.plan.plan import Kernel
from sparsec.plan.states.mixture_specs import MixtureGrad
from sparsec.scalar.expr import Expr


def added(kernels: Sequence[Kernel], kept: Iterable[str]) -> list[Kernel]:
    """Kernels whose sums are left to the one that makes a term in fp32 last; buffers that are ``kept`` stay."""
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
    if not isinstance(spec, Total) or not spec.batched:
        return None
    exact = set(spec.term_dtypes) == {"float32"}
    dtypes = dict(zip(spec.terms, spec.term_dtypes, strict=True))
    for other in kernels:
        own = _term(other.spec)
        if own is None or dtypes.get(own) != "float32" or own in outputs:
            continue
        if isinstance(other.spec, GatheredGradQ) and not exact:
            continue
        readers = [k for k in kernels if own in k.reads]
        waits = before(kernels, set(spec.terms) - {own})
        if readers == [kernel] and other not in waits and spec.terms.count(own) == 1:
            return other
    return None


def _term(spec: AnySpec) -> str | None:
    """What a kernel that has whole rows at hand makes, and may make together with other terms."""
    if isinstance(spec, GatheredGradQ):
        return spec.grad_q
    if isinstance(spec, MixtureGrad):
        return spec.grad_q[0] if spec.grad_q is not None else None
    return spec.out if isinstance(spec, Map) else None


def before(kernels: Sequence[Kernel], names: set[str]) -> list[Kernel]:
    """The kernels that must have run before some buffers are there."""
    found: list[Kernel] = []
    while writers := [k for k in kernels if k not in found and names & set(k.writes)]:
        found += writers
        names = names | {name for k in writers for name in k.reads}
    return found


def _with_terms(taker: Kernel, kernel: Kernel) -> Kernel:
    """A kernel that makes a sum of its own term and the others."""
    total = kernel.spec
    assert isinstance(total, Total)
    own = _term(taker.spec)
    others = tuple(t for t in zip(total.terms, total.term_dtypes, strict=True) if t[0] != own)
    return replace(
        taker,
        spec=_summing(taker.spec, total, others),
        reads=tuple(dict.fromkeys((*taker.reads, *(name for name, _ in others)))),
        writes=tuple(total.out if name == own else name for name in taker.writes),
        covers=(*taker.covers, *kernel.covers),
        sources=tuple(dict.fromkeys((*taker.sources, *(s for s in kernel.sources if s[0] != own)))),
        results=(*(r for r in taker.results if r[0] != own), *kernel.results),
    )


def _summing(spec: AnySpec, total: Total, others: tuple[tuple[str, str], ...]) -> AnySpec:
    """The spec of the kernel that makes the sum."""
    if isinstance(spec, GatheredGradQ):
        return replace(spec, grad_q=total.out, out_dtype=total.out_dtype, terms=tuple(name for name, _ in others))
    if isinstance(spec, MixtureGrad):
        return replace(spec, grad_q=(total.out, total.out_dtype), terms=others)
    assert isinstance(spec, Map)
    more = tuple(MapSource(name, dtype, spec.shape) for name, dtype in others)
    names = [symbol(len(spec.sources) + n) for n in range(len(more))]
    fn: Expr = reduce(lambda a, b: a + b, names, spec.fn)
    return replace(spec, sources=(*spec.sources, *more), out=total.out, dtype=total.out_dtype, fn=fn)
