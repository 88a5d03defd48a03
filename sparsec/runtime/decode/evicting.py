"""Decoding LoLA: a window, a cache and a state of fixed size, whatever the length; lengths are each sequence's own.

A step is two launches: one takes a complete chunk into the cache where a sequence begins one, and one reads what is
held. Neither asks the host for a length, so that a CUDA graph of a step serves all lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError
from sparsec.lower.decode import read_held, take_in
from sparsec.lower.decode.held import Held
from sparsec.lower.decode.pages import ENDS, LENGTHS
from sparsec.lower.lowered import Step
from sparsec.runtime import bind
from sparsec.runtime.decode import check
from sparsec.runtime.decode.cache_layout import UNBOUNDED
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.decode.declared import check_own, declared
from sparsec.runtime.decode.evict_step import banks, describe, features_of, form_of, held_of
from sparsec.runtime.decode.pages import Pool
from sparsec.runtime.launch import Bind, build
from sparsec.runtime.target import available

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled


class EvictingDecoder:
    """The decode step of a variant that evicts; kernels are built once for all lengths.

    Attributes:
        declared: the declaration that its caches are made for.
        constant: inputs that a step does not take anew; none.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.declared, self.compiled = declared(compiled.variant), compiled
        self.target, self.folder = compiled.target, compiled.cache_dir
        self.form = form_of(compiled.graph)
        ahead = features_of(compiled.graph, self.form)
        self.ahead = None if ahead is None else type(compiled)(ahead, self.target, compiled.records.folder.parent)
        self.size = self.form.node.integer("size")
        self.constant: frozenset[str] = frozenset()
        self._built: dict[tuple[Held, bool], tuple[Bind, list[str], Bind, list[str]]] = {}

    def new(self, batch: int, max_length: int | None = None, **options: object) -> Cache:
        """An empty cache, whose size does not depend on ``max_length``. Raises InputError for options of pages."""
        if options:
            rule = "a cache that evicts has no pages, pools or schedules of its own"
            raise InputError(next(iter(options)), "given", rule, "init_cache(batch)")
        most = UNBOUNDED if max_length is None else max_length
        check.sizes(batch=batch, max_length=most)
        return Cache(self.declared, batch, most, 1, most, Pool(1, 1), False)

    def __call__(self, cache: Cache, tokens: Mapping[str, Tensor | None]) -> list[Tensor]:
        """The outputs of new tokens, which join the cache; passes end where a sequence's chunk does."""
        check_own(self.declared, cache, Cache)
        given = self._given(cache, tokens)
        count, done, takes = given["q"].shape[1], 0, list[int]()
        while done < count:
            takes.append(min(count - done, *(self.size - (n + done) % self.size for n in cache.known_lengths)))
            done += takes[-1]
        return self._passes(cache, given, takes)

    def captured(self, cache: Cache, tokens: Mapping[str, Tensor | None]) -> list[Tensor]:
        """As a call, for any lengths: one token at a time."""
        check_own(self.declared, cache, Cache)
        given = self._given(cache, tokens)
        return self._passes(cache, given, [1] * given["q"].shape[1])

    def count(self, tokens: Mapping[str, Tensor | None]) -> int:
        """New tokens of a step. Raises InputError for missing or unknown ones."""
        return self._named(tokens)[self.form.names["q"]].shape[1]

    def describe(self, dims: Mapping[str, int], dtype: str) -> str:
        """What a cache holds and what a step launches, in lines."""
        return describe(self.form, self.target, dims, dtype)

    def _named(self, tokens: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        found = {name: x for name, x in tokens.items() if x is not None}
        bind.check_names(self.compiled.variant, found)
        return found

    def _given(self, cache: Cache, tokens: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The tokens by part. Raises InputError for missing, unknown or too few ones."""
        import torch

        named = self._named(tokens)
        count = named[self.form.names["q"]].shape[1]
        if sizes := {tuple(x.shape[:2]) for x in named.values()} - {(cache.batch, count)}:
            rule = f"{cache.batch} sequences have as many new tokens each, one at least"
            raise InputError("tokens", f"rows {sorted(sizes)}", rule, "give every sequence its tokens")
        if not count:
            raise InputError("tokens", "none", "a step has one at least", "give some")
        bind.check_devices(named, self.target.device)
        self.compiled.bind(named)
        found = {part: named[name].detach() for part, name in self.form.names.items() if name in named}
        if self.ahead is not None:
            with torch.no_grad(), torch.autocast(self.target.device, enabled=False):
                made = self.ahead(None, **{name: named[name] for name in self.ahead.variant.inputs})
            results = made if isinstance(made, tuple) else (made,)
            found |= dict(zip(self.form.made, results, strict=True))
        return found

    def _passes(self, cache: Cache, given: Mapping[str, Tensor], takes: list[int]) -> list[Tensor]:
        import torch

        kinds = {part: str(x.dtype).removeprefix("torch.") for part, x in given.items()}
        held = held_of(self.form, {part: x.shape for part, x in given.items()}, kinds)
        cache.reserve(sum(takes))
        if cache.lengths is None:
            available(self.target)
            cache.allocate({}, given["q"].device, banks(held))
        check.same_states(cache, banks(held), given["q"].device)
        out = given["q"].new_empty(*given["q"].shape[:3], held.cols)
        done = 0
        for take in takes:
            some = slice(done, done + take)
            self._pass(cache, held, {n: x[:, some] for n, x in given.items()}, out[:, some])
            done += take
        cache.replayed(done)
        assert isinstance(out, torch.Tensor)
        return [out]

    def _pass(self, cache: Cache, held: Held, new: Mapping[str, Tensor], out: Tensor) -> None:
        """Tokens of one chunk of each sequence."""
        count = out.shape[1]
        first, takes, then, reads = self._kernels(held, count)
        states, lengths, ends = cache.states, cache.lengths, cache.ends
        assert lengths is not None and ends is not None
        buffers = {LENGTHS: lengths, ENDS: ends, "out": out, **{f"new_{n}": x for n, x in new.items()}}
        for part in ("k", "v", "fk"):
            buffers[f"held_{part}"] = buffers[f"next_{part}"] = states[part]
        for name in ("table", "m", "z"):
            buffers[name] = buffers[f"next_{name}"] = states[name]
        params = {"B": cache.batch, "TQ": count}
        first([buffers[name] for name in takes], params)()
        then([buffers[name] for name in reads], params)()

    def _kernels(self, held: Held, count: int) -> tuple[Bind, list[str], Bind, list[str]]:
        read = read_held.default(held, self.target.name, count)
        key = held, read.rows == read_held.default(held, self.target.name, 1).rows
        if key not in self._built:
            take = take_in.default(held, self.target.name)
            both = Step(take_in.lower(held, take), take), Step(read_held.lower(held, read), read)
            (one, named), (two, others) = (
                (build(s, self.target, self.folder), [t.name for t in s.program.tensors]) for s in both
            )
            self._built[key] = one, named, two, others
        return self._built[key]
