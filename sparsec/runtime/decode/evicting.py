"""Decoding LoLA: a window, a cache and a state of fixed size, whatever the length.

Rows of memory are ``keep`` pairs of the cache, then a ring of the window and the running chunk. When a chunk begins,
the one that leaves the window joins the cache, which keeps the pairs that the state recalls worst: tensor operations,
once per chunk; all else is the kernels of ``step_variant``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError
from sparsec.runtime.decode import check
from sparsec.runtime.decode.declared import Declared, check_own, declared
from sparsec.runtime.decode.evict_step import form_of, step_variant

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled


@dataclass
class EvictCache:
    """What ``init_cache`` returns for a variant that evicts; all sequences have one length.

    Attributes:
        length: tokens so far.
        tensors: by part, empty before any token: k, v, fk ``[batch,rows,HKV,·]``, place int32 ``[batch,rows,HKV]``, the
            token of a row or -1, and the state m ``[batch,1,HKV,F,DV]`` and z ``[batch,1,HKV,F,1]``, fp32.
    """

    declared: Declared
    batch: int
    length: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    def snapshot(self) -> EvictCache:
        """A copy of the cache as it is now."""
        return EvictCache(self.declared, self.batch, self.length, {name: x.clone() for name, x in self.tensors.items()})

    def restore(self, snapshot: EvictCache) -> None:
        """Make the cache what it was."""
        self.length, self.tensors = snapshot.length, {name: x.clone() for name, x in snapshot.tensors.items()}


class EvictingDecoder:
    """The decode step of a variant that evicts; kernels are built once for all lengths."""

    def __init__(self, compiled: Compiled) -> None:
        from sparsec.runtime.compiled import compile

        self.declared = declared(compiled.variant)
        self.form = form_of(compiled.graph)
        self.keep, self.size = self.form.node.integer("keep"), self.form.node.integer("size")
        self.ring = (self.form.lag + 1) * self.size
        made = step_variant(self.form, compiled.variant.name)
        self.step = compile(made, compiled.target, compiled.records.folder.parent)

    def new(self, batch: int, max_length: int | None = None, **options: object) -> EvictCache:
        """An empty cache, whose size does not depend on ``max_length``. Raises InputError for options of pages."""
        if options:
            rule = "a cache that evicts has no pages, pools or schedules of its own"
            raise InputError(next(iter(options)), "given", rule, "init_cache(batch)")
        check.sizes(batch=batch)
        return EvictCache(self.declared, batch)

    def __call__(self, cache: EvictCache, tokens: Mapping[str, Tensor | None]) -> list[Tensor]:
        """The outputs of new tokens, which join the cache."""
        import torch

        check_own(self.declared, cache, EvictCache)
        given = self._given(cache, tokens)
        count, done = given["q"].shape[1], 0
        found: list[Tensor] = []
        with torch.no_grad():
            if not cache.tensors:
                cache.tensors = self._empty(given)
            while done < count:
                if cache.length % self.size == 0:
                    self._evict(cache)
                take = min(count - done, self.size - cache.length % self.size)
                found.append(self._pass(cache, {n: x[:, done : done + take] for n, x in given.items()}))
                done += take
        return [torch.cat(found, 1)]

    def _given(self, cache: EvictCache, tokens: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The tokens by part. Raises InputError for missing, unknown or too few ones."""
        names = self.form.names
        if {*tokens} != {*names.values()} or any(x is None for x in tokens.values()):
            raise InputError("tokens", ", ".join(tokens), f"a step takes {', '.join(names.values())}", "give these")
        found = {part: x for part, name in names.items() if (x := tokens[name]) is not None}
        if sizes := {tuple(x.shape[:2]) for x in found.values()} - {(cache.batch, found["q"].shape[1])}:
            rule = f"{cache.batch} sequences have as many new tokens each, one at least"
            raise InputError("tokens", f"rows {sorted(sizes)}", rule, "give every sequence its tokens")
        if not found["q"].shape[1]:
            raise InputError("tokens", "none", "a step has one at least", "give some")
        return found

    def _empty(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows, k, v, fk = self.keep + self.ring, given["k"], given["v"], given["fk"]
        found = {name: x.new_zeros(x.shape[0], rows, *x.shape[2:]) for name, x in (("k", k), ("v", v), ("fk", fk))}
        found["place"] = found["k"][..., 0].int() - 1
        first = fk.float().new_zeros(fk.shape[0], 1, *fk.shape[2:])
        return found | {"m": first[..., None].repeat(1, 1, 1, 1, v.shape[3]), "z": first[..., None].clone()}

    def _pass(self, cache: EvictCache, new: Mapping[str, Tensor]) -> Tensor:
        """Outputs of tokens of one chunk."""
        import torch

        held, count, first = cache.tensors, new["q"].shape[1], self.keep + cache.length % self.ring
        for part in ("k", "v", "fk"):
            held[part][:, first : first + count] = new[part]
        numbers = torch.arange(cache.length, cache.length + count, dtype=torch.int32, device=new["q"].device)
        held["place"][:, first : first + count] = numbers[:, None]
        names = self.form.names
        nothing = {
            "no_key": torch.zeros_like(new["fk"], dtype=torch.float32),
            "no_value": torch.zeros_like(new["v"], dtype=torch.float32),
            "no_one": torch.zeros_like(new["v"][..., :1], dtype=torch.float32),
        }
        own = {names["q"]: new["q"], names["fq"]: new["fq"], names["k"]: held["k"], names["v"]: held["v"]}
        out = self.step(cache.length, **own, **{n: held[n] for n in ("place", "m", "z")}, **nothing)
        cache.length += count
        assert isinstance(out, torch.Tensor)
        return out

    def _evict(self, cache: EvictCache) -> None:
        """The chunk whose place in the ring is about to be taken joins the cache, which gives pairs up."""
        import torch

        if cache.length < self.ring:
            return
        held, first = cache.tensors, self.keep + cache.length % self.ring
        leaves = slice(first, first + self.size)
        every = {n: torch.cat([x[:, : self.keep], x[:, leaves]], 1) for n, x in held.items() if n not in ("m", "z")}
        fk, v, m, z = every["fk"].float(), every["v"].float(), held["m"], held["z"]
        weight = torch.einsum("bnhf,bhf->bnh", fk, z[:, 0, ..., 0])[..., None]
        known = torch.einsum("bnhf,bhfe->bnhe", fk, m[:, 0]) / torch.where(weight == 0, 1.0, weight)
        error = (torch.where(weight == 0, 0.0, known) - v).square().sum(-1)
        error = torch.where(every["place"] < 0, -1.0, error)
        order = every["place"].argsort(1)
        order = order.gather(1, error.gather(1, order).argsort(dim=1, descending=True, stable=True))
        for name, x in every.items():
            index = order[:, : self.keep]
            wide = index if x.dim() == 3 else index[..., None].expand(*index.shape, x.shape[3])
            held[name][:, : self.keep] = x.gather(1, wide)
        gone = torch.zeros_like(error).scatter_(1, order[:, self.keep :], 1.0) * (every["place"] >= 0)
        written = fk * gone[..., None]
        m += torch.einsum("bnhf,bnhe->bhfe", written, v)[:, None]
        z += written.sum(1)[:, None, ..., None]
        held["place"][:, leaves] = -1
