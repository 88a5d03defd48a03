"""Documents of one variant, apart and packed: what every packed call must agree with is the loop over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsec.ir.dims import fixed, value
from sparsec.ir.lengths import lengths
from sparsec.ir.variant import Variant, dim_names
from sparsec.plan.packed.layout import Layout, layout
from sparsec.plan.packed.plan import packing_of
from sparsec.runtime.inputs import inputs

SIZES = {"B": 1, "H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16}


@dataclass(frozen=True, slots=True)
class PackedCase:
    """Documents of a variant.

    Attributes:
        documents: the inputs of each, with a batch of one; what has no batch is the same tensor in all.
        packed: the inputs of a packed call.
        layouts: of each input.
        ends: ``cu_seqlens``, and ``cu_seqlens_k`` where keys have lengths of their own.
        made: of each output, the dimension in which documents lie: that of tokens, or 0 for an entry per document.
    """

    documents: list[dict[str, Tensor]]
    packed: dict[str, Tensor]
    layouts: dict[str, Layout | None]
    ends: dict[str, Tensor]
    made: list[int]

    def moved(self, move: Callable[[str, Tensor], Tensor]) -> PackedCase:
        """The same with inputs and ends as ``move`` makes them of their names and tensors."""
        documents, (packed, ends) = self.documents, (self.packed, self.ends)
        every = [{name: move(name, x) for name, x in tensors.items()} for tensors in (*documents, packed, ends)]
        return replace(self, documents=every[:-2], packed=every[-2], ends=every[-1])


def packed_case(variant: Variant, queries: Sequence[int], keys: Sequence[int], **sizes: int) -> PackedCase:
    """Random documents of these lengths; ``keys`` is not read where a variant has one length for both."""
    own, names = lengths(variant), dim_names(variant)
    documents = []
    for n, (q, k) in enumerate(zip(queries, keys, strict=True)):
        env = {name: size for name, size in {**SIZES, **sizes}.items() if name in names}
        env |= {str(dim): length for dim, length in ((own.keys, k), (own.queries, q)) if str(dim) in names}
        env |= {name: value(e, env) for name, e in fixed(variant).items() if name in names and name not in env}
        documents.append(inputs(variant, dtype="float32", device="cpu", seed=n, **env))
    return case_of(variant, documents, queries, keys)


def case_of(
    variant: Variant, documents: list[dict[str, Tensor]], queries: Sequence[int], keys: Sequence[int]
) -> PackedCase:
    """These documents, of so many queries and keys."""
    own = lengths(variant)
    packing = packing_of(variant, own)
    layouts = {name: layout([packing.of(d) for d in spec.shape], packing) for name, spec in variant.inputs.items()}
    packed = {name: _together(name, at, documents) for name, at in layouts.items()}
    ends = {"cu_seqlens": _ends(queries)}
    if str(own.queries) != str(own.keys) and own.keys is not None and list(queries) != list(keys):
        ends["cu_seqlens_k"] = _ends(keys)
    made = [layout([packing.of(d) for d in spec.shape], packing) for spec in variant.outputs]
    return PackedCase(documents, packed, layouts, ends, [at.along or 0 if at is not None else 0 for at in made])


def _ends(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def _together(name: str, at: Layout | None, documents: list[dict[str, Tensor]]) -> Tensor:
    if at is None:
        for document in documents:
            document[name] = documents[0][name]
        return documents[0][name].clone()
    if at.along is None:
        return torch.cat([d[name] for d in documents], at.batch)
    return torch.cat([d[name] for d in documents], at.along).squeeze(at.batch)


Call = Callable[..., Any]


def results(call: Call, **given: Any) -> tuple[Tensor, ...]:
    """The outputs of a call as a tuple."""
    found = call(**given)
    return found if isinstance(found, tuple) else (found,)


def looped(call: Call, case: PackedCase) -> list[Tensor]:
    """The outputs of a call for each document alone, packed."""
    every = [results(call, **document) for document in case.documents]
    return [_joined(parts, along) for parts, along in zip(zip(*every, strict=True), case.made, strict=True)]


def _joined(parts: Sequence[Tensor], along: int) -> Tensor:
    """A result of all documents as a packed call has it."""
    return torch.cat(list(parts), along).squeeze(0) if along else torch.cat(list(parts))


def gradients(
    call: Call, case: PackedCase, wrt: Sequence[str], cotangents: Sequence[Tensor]
) -> dict[str, Tensor | None]:
    """Gradients of a packed call under these gradients of its outputs; of what is no number none."""
    leaves = {name: x.clone().requires_grad_(name in wrt) for name, x in case.packed.items()}
    _pull(results(call, **leaves, **case.ends), cotangents)
    return {name: leaves[name].grad for name in wrt}


def looped_gradients(
    call: Call, case: PackedCase, wrt: Sequence[str], cotangents: Sequence[Tensor]
) -> dict[str, Tensor | None]:
    """As ``gradients``, document by document."""
    found: dict[str, list[Tensor | None]] = {name: [] for name in wrt}
    starts = [0] * len(cotangents)
    for document in case.documents:
        leaves = {name: x.clone().requires_grad_(name in wrt) for name, x in document.items()}
        outputs = results(call, **leaves)
        sizes = [o.shape[along] for o, along in zip(outputs, case.made, strict=True)]
        mine = [c.narrow(0, start, size) for c, start, size in zip(cotangents, starts, sizes, strict=True)]
        _pull(outputs, [c.reshape(o.shape) for c, o in zip(mine, outputs, strict=True)])
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
        for name in wrt:
            found[name].append(leaves[name].grad)
    return {name: _summed(parts, case.layouts[name]) for name, parts in found.items()}


def off_the_loop(call: Call, case: PackedCase, wrt: Sequence[str], **longest: int) -> tuple[float, float]:
    """How far outputs, and gradients of ``wrt``, of a packed call are from the loop over its documents."""
    outputs = results(call, **case.packed, **case.ends, **longest)
    apart = largest_difference(outputs, looped(call, case))
    if not wrt:
        return apart, 0.0
    cotangents = cotangents_like(outputs)
    wanted = looped_gradients(call, case, wrt, cotangents)
    return apart, largest_error(gradients(call, case, wrt, cotangents), wanted)


def _pull(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])


def _summed(parts: Sequence[Tensor | None], at: Layout | None) -> Tensor | None:
    known = [p for p in parts if p is not None]
    if not known:
        return None
    assert len(known) == len(parts), "some documents have a gradient and others have none"
    if at is None:
        return torch.stack(known).sum(0)
    if at.along is None:
        return torch.cat(known, at.batch)
    return torch.cat(known, at.along).squeeze(at.batch)


def cotangents_like(outputs: Sequence[Tensor], seed: int = 7) -> list[Tensor]:
    """Random gradients of outputs, 0 where an output is infinite."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    return [
        torch.where(o.isfinite(), c, 0.0) if o.is_floating_point() else c for o, c in zip(outputs, drawn, strict=True)
    ]


def floats(variant: Variant) -> list[str]:
    """The inputs that may have gradients."""
    return [name for name, spec in variant.inputs.items() if spec.dtype in ("float", "float32")]


def largest_difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """As ``largest_error``, of outputs in order."""
    names = [str(n) for n in range(len(found))]
    return largest_error(dict(zip(names, found, strict=True)), dict(zip(names, wanted, strict=True)))


def largest_error(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None]) -> float:
    """The largest difference relative to each tensor's largest element; infinite where only one has a gradient."""
    worst = 0.0
    for name, x in found.items():
        y = wanted[name]
        if (x is None) != (y is None):
            return float("inf") if (x if x is not None else y).abs().max() > 0 else worst  # type: ignore[union-attr]
        if x is not None and y is not None and y.numel():
            same = x == y
            difference = (x.double() - y.double()).abs().masked_fill(same, 0.0)
            scale = y.double().masked_fill(~y.isfinite(), 0.0).abs().max().clamp_min(1e-12)
            worst = max(worst, float((difference / scale).nan_to_num(torch.inf).detach().max()))
    return worst
