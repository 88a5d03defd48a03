"""Masses of keys that a mixture alone reads are no tensors: the mixture and its scans become one kernel.

    Scan(ones, k, …) -> z_l  for every level        Mixture(q, z_1, …) -> w
      ->  StateMixture(q, k, …) -> w

and their adjoints likewise, where the gradient of each mass goes into that of its scan alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sparsec.plan.added import before
from sparsec.plan.memory import ordered
from sparsec.plan.plan import Kernel, Plan, PlanError
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad, StateMixture, StateMixtureGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad


def scored(plan: Plan, chunked: Callable[[Scan], bool]) -> Plan:
    """The plan with such mixtures, of masses whose scans are ``chunked``; the same plan where there are none."""
    kernels = list(plan.kernels)
    for kernel in plan.kernels:
        if isinstance(kernel.spec, Mixture):
            kernels = _joined(kernels, kernel, kernel.spec, set(plan.outputs), chunked) or kernels
    if len(kernels) == len(plan.kernels):
        return plan
    try:
        kernels = _scores_first(kernels)
        read = {name for k in kernels for name in k.reads} | {*plan.outputs}
        kernels = list(ordered([k for k in kernels if read & {*k.writes}]))
    except PlanError:
        return plan
    used = {name for k in kernels for name in (*k.reads, *k.writes)} | {*plan.outputs}
    buffers = tuple(b for b in plan.buffers if b.role != "temporary" or b.name in used)
    return replace(plan, kernels=tuple(kernels), buffers=buffers)


def _scores_first(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Scores before other scans, where they need none: what they sort on their way is then there for all."""
    first = list[Kernel]()
    for kernel in kernels:
        needed = before(kernels, {*kernel.reads}) if isinstance(kernel.spec, StateMixture) else []
        if isinstance(kernel.spec, StateMixture) and not any(isinstance(k.spec, Scan) for k in needed):
            first += [k for k in kernels if k in (*needed, kernel) and k not in first]
    return [*first, *(k for k in kernels if k not in first)]


def _joined(
    kernels: Sequence[Kernel], kernel: Kernel, mixture: Mixture, outputs: set[str], chunked: Callable[[Scan], bool]
) -> list[Kernel] | None:
    """The kernels with a mixture and its masses as one, and their adjoints; None where that cannot be."""
    masses = [k for z in mixture.z for k in kernels if z in k.writes]
    scans = tuple(k.spec for k in masses if isinstance(k.spec, Scan) and _mass(k.spec, mixture) and chunked(k.spec))
    backs = [k for k in kernels if isinstance(k.spec, MixtureGrad) and k.spec.forward == mixture]
    readers = [k for k in kernels if {*mixture.z} & {*k.reads}]
    if len(scans) < len(mixture.z) or outputs & {*mixture.z} or mixture.gain is not None:
        return None
    if any(k is not kernel and k not in backs for k in readers) or len({*mixture.z}) < len(mixture.z):
        return None
    spec = StateMixture(mixture.name, mixture, scans)
    found = _replaced(kernels, [kernel, *masses], replace(kernel, spec=spec), [*mixture.z, *_ones(scans)])
    for back in backs:
        made = _adjoint(found, back, spec, outputs)
        if made is None:
            return None
        found = made
    return found


def _ones(scans: Sequence[Scan]) -> list[str]:
    """The keys 1 of masses, which no program of theirs multiplies."""
    return [scan.writes.k.name for scan in scans]


def _mass(scan: Scan, mixture: Mixture) -> bool:
    """Whether a scan is a mass of keys alone, of what may be asked by the mixture's queries."""
    w = scan.writes
    alone = w.split and w.rows == 1 and len(scan.reads) == 1 and scan.final is None and scan.surprise is None
    fits = w.slots == 1 and w.heads == mixture.key_heads
    return alone and fits and (w.route is None or w.decay is not None)


def _adjoint(kernels: Sequence[Kernel], back: Kernel, forward: StateMixture, outputs: set[str]) -> list[Kernel] | None:
    mixture = back.spec
    assert isinstance(mixture, MixtureGrad)
    grads = [z[0] for z in mixture.grad_z if z is not None]
    readers = {z: [k for k in kernels if z in k.reads] for z in grads}
    pairs = zip(mixture.grad_z, forward.masses, strict=True)
    scans = [_of(readers[z[0]], z[0], scan) if z is not None else None for z, scan in pairs]
    if outputs & {*grads} or sum(s is not None for s in scans) < len(grads):
        return None
    specs = tuple(k.spec if k is not None and isinstance(k.spec, ScanGrad) else None for k in scans)
    spec = StateMixtureGrad(mixture.name, forward, mixture, specs)
    taken = [back, *(k for k in scans if k is not None)]
    own = next(k for k in kernels if isinstance(k.spec, StateMixture) and k.spec == forward)
    inner = [*grads, *forward.mixture.z, *_ones(forward.masses)]
    reads, sources = (*back.reads, *own.reads, forward.mixture.out), (*back.sources, *own.sources)
    made = _replaced(kernels, taken, replace(back, spec=spec, reads=reads, sources=sources), inner)
    given = next(r for r in own.results if r[0] == forward.mixture.out)
    return [replace(k, sources=(*k.sources, given)) if k.spec is spec else k for k in made]


def _of(readers: Sequence[Kernel], grad: str, scan: Scan) -> Kernel | None:
    """The adjoint of a mass, if nothing else reads the mass's gradient."""
    if len(readers) != 1 or not isinstance(readers[0].spec, ScanGrad):
        return None
    spec = readers[0].spec
    return readers[0] if spec.forward == scan and [g.name for g in spec.grads] == [grad] else None


def _replaced(kernels: Sequence[Kernel], taken: Sequence[Kernel], made: Kernel, inner: Iterable[str]) -> list[Kernel]:
    """The kernels with one in place of several, between which buffers are no more."""
    gone = {*inner}
    found = replace(
        made,
        reads=tuple(dict.fromkeys(x for k in (made, *taken) for x in k.reads if x not in gone)),
        writes=tuple(dict.fromkeys(x for k in taken for x in k.writes if x not in gone)),
        covers=tuple(dict.fromkeys(x for k in taken for x in k.covers)),
        sources=tuple(dict.fromkeys(x for k in (made, *taken) for x in k.sources if x[0] not in gone)),
        results=tuple(dict.fromkeys(x for k in taken for x in k.results if x[0] not in gone)),
    )
    return [found if k is taken[0] else k for k in kernels if k is taken[0] or k not in taken]
