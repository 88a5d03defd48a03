"""Decoding: a step writes new rows into the cache, brings summaries up to date and runs the plan's kernels on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError
from sparsec.lower.decode.pages import ENDS, LENGTHS
from sparsec.lower.decode.schedules import FEW
from sparsec.passes.stream import stream
from sparsec.passes.stream_ahead import before_memory
from sparsec.runtime import bind
from sparsec.runtime.decode import check as decode_check
from sparsec.runtime.decode.appends import appended
from sparsec.runtime.decode.built import Built, bound, copy, make, temporaries
from sparsec.runtime.decode.cache_layout import UNBOUNDED, banks, longest_chunk, page_size, places
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.decode.declared import check_own, declared
from sparsec.runtime.decode.pages import PAGE, Pool
from sparsec.runtime.decode.space import beside_scans, by_tokens, for_steps, serves
from sparsec.runtime.target import available
from sparsec.scalar.evaluate import evaluate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled

STEP = 1024
"""Tokens of one pass over the kernels where a cache has rings, whose pages grow with it."""


class Decoder:
    """The decode step of a compiled variant; kernels are built once for all lengths.

    Attributes:
        declared: the declaration that its caches are made for.
        spec: what a cache keeps.
        ahead: what computes maps of new keys, which are kept instead of what they are made of; None without any.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.declared = declared(compiled.variant)
        ahead, rest = before_memory(compiled.graph)
        found, folder = stream(rest), compiled.records.folder.parent
        apart = found.variant is not compiled.graph
        compile = type(compiled)  # for the same target and cache
        self.ahead = compile(ahead, compiled.target, folder) if ahead is not None else None
        self.step = compile(found.variant, compiled.target, folder) if apart else compiled
        self.streamed = found
        if apart:  # a bank that was given an input must not get another
            of_states = found.spec.states or found.twins
            self.streamed = replace(found, variant=self.step.graph) if of_states else stream(self.step.graph)
        self.spec = self.streamed.spec
        self.constant = self.spec.constant
        self._built: dict[tuple[object, ...], Built] = {}
        self._made: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def new(
        self, batch: int, max_length: int | None = None, page: int = PAGE, step: int = STEP, pool: Pool | None = None,
        deterministic: bool | None = None, cold: bool = False, states: Mapping[str, Tensor] | None = None,
    ) -> Cache:  # fmt: skip
        """An empty cache; memory is taken when the first tokens come.

        Args:
            max_length: tokens of a sequence at most; may be left out where only states are kept.
            page: tokens of a page; a multiple of chunks and strides is taken.
            step: the most tokens of one pass where there are rings, which are as much longer.
            pool: pages shared with other caches; by default a cache has its own, for all its tokens.
            deterministic: steps under the forward's schedules, bit for bit its results; by default what
                ``torch.use_deterministic_algorithms`` says.
            cold: what is read by chosen chunks alone lives in pinned host memory, of which a GPU reads those chunks.
            states: the first states that the variant declares, by input: with a batch, or for all sequences alike.
        """
        import torch

        if max_length is None and not self.spec.paged:
            max_length = self.spec.most or UNBOUNDED
        decode_check.sizes(batch=batch, max_length=max_length, page=page, step=step)
        decode_check.first_states(self.spec, states or {})
        assert max_length is not None
        decode_check.levels(self.spec, max_length)
        size = page_size(self.spec, page if pool is None else pool.page)
        if pool is not None:
            decode_check.pool(pool.page, size)
        exact = torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic
        if cold and not any(k.chosen for k in self.spec.kept):
            rule = f"{self.step.variant.name} has no input that is read by chosen chunks alone"
            raise InputError("cold", "True", rule, "keep the cache where the kernels run")
        if not self.spec.paged:
            pool = Pool(1, size)  # of which nothing is taken
        return Cache(self.declared, batch, max_length, size, min(step, max_length), pool, exact, cold, states)

    def __call__(self, cache: Cache, tokens: Mapping[str, Tensor | None], outputs: bool = True) -> list[Tensor]:
        """The outputs of new tokens, whose keys and values join the cache; without ``outputs`` they only join it."""
        import torch

        check_own(self.declared, cache, Cache)
        given = decode_check.given(self.streamed, self.ready(tokens))
        count = decode_check.count(self.streamed, given)
        if not any(k.window is not None for k in self.spec.kept) or count <= cache.step:
            return self._pass(cache, given, count, outputs)
        decode_check.dims(self.streamed, cache, given, count)  # all of it fits before any of it joins the cache
        cache.reserve(count)
        parts = [self._pass(cache, *part, outputs) for part in decode_check.parts(self.streamed, cache, given, count)]
        last = {held.output for held in self.spec.states}
        both = enumerate(zip(*parts, strict=True))
        return [found[-1] if n in last else torch.cat(found, dim=1) for n, found in both]

    def captured(self, cache: Cache, tokens: Mapping[str, Tensor | None]) -> list[Tensor]:
        """As a call; what a CUDA graph captures serves all lengths."""
        return self(cache, tokens)

    def count(self, tokens: Mapping[str, Tensor | None]) -> int:
        """New tokens of a step that a graph may capture. Raises InputError where rows of chunks are too few."""
        given = decode_check.given(self.streamed, self.ready(tokens))
        found = decode_check.count(self.streamed, given)
        decode_check.captured(self.streamed, given, found)
        return found

    def ready(self, tokens: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """What the step takes of a caller's tokens: maps that become memory are computed."""
        import torch

        if self.ahead is None:
            return dict(tokens)
        own = self.ahead.variant
        kind = self.step.target.device
        with torch.no_grad(), torch.autocast(kind, enabled=False):  # a step takes tokens as they are
            made = self.ahead(None, **decode_check.named(own, tokens))
        results = made if isinstance(made, tuple) else (made,)
        kept = {n: x for n, x in tokens.items() if n in self.streamed.given or n not in own.inputs}
        return kept | dict(zip((own.names[node] for node in own.outputs), results, strict=True))

    def _pass(self, cache: Cache, given: Mapping[str, Tensor], count: int, outputs: bool) -> list[Tensor]:
        dims, dtype = decode_check.dims(self.streamed, cache, given, count)
        built = self.built(cache, dims, dtype, count)
        first = next(iter(given.values()))
        bind.check_devices(given, self.step.target.device)
        decode_check.rows(cache, built.places, first.device)
        decode_check.lists(self.streamed, given, dims)
        if cache.lengths is None:
            available(self.step.target)
            found = places(self.spec, built.plan, dims, cache.page, cache.cold)
            cache.allocate(found, first.device, banks(self.spec, dims), longest_chunk(built.plan))
        cache.reserve(count)
        given = {**given, **self._ones(dims, first.device)}
        results, launches, counted = self.launches(cache, built, given, dims, count, outputs or bool(self.spec.states))
        for launch in launches:
            launch()
        lengths = cache.lengths
        assert lengths is not None
        if not counted and self.spec.counted:
            lengths += count
        cache.replayed(count)
        last = {held.output for held in self.spec.states}  # which the next step writes over
        return [x.clone() if n in last else x for n, x in enumerate(results)]

    def _ones(self, dims: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
        """Inputs that are 1 everywhere."""
        import torch

        found = {}
        for name in self.streamed.ones:
            shape = tuple(int(evaluate(d, dims)) for d in self.streamed.variant.inputs[name].shape)
            if (shape, device) not in self._made:
                self._made[shape, device] = torch.ones(shape, device=device)
            found[name] = self._made[shape, device]
        return found

    def launches(
        self, cache: Cache, built: Built, given: Mapping[str, Tensor], dims: Mapping[str, int], count: int, whole: bool
    ) -> tuple[list[Tensor], list[Callable[[], None]], bool]:
        """The outputs, what fills them (the cache alone where not ``whole``), and whether that counts the tokens."""
        assert cache.lengths is not None and cache.ends is not None
        held = {**cache.tensors, **cache.tables, LENGTHS: cache.lengths, ENDS: cache.ends}
        new = {k.name: given[k.name] for k in self.spec.kept if k.name in given}
        found = appended(built.appends, new, held, count)
        buffers = {**{n: x for n, x in given.items() if n not in new}, **held}
        states = cache.states
        after = {built.plan.outputs[held.output]: states[held.name] for held in self.spec.states}
        copies = {n: x for n, x in after.items() if n not in built.in_place}
        buffers |= states | {n: x for n, x in after.items() if n in built.in_place}
        buffers |= temporaries(built.plan, dims, cache, buffers)
        outputs = [after.get(name, buffers[name]) for name in built.plan.outputs][: self.streamed.outputs]
        if not (count and cache.batch and all(x.numel() for x in outputs)):
            return outputs, [launch for launch in found if launch is not None], False
        found += bound(built, buffers, dims, count, whole)
        found += [partial(copy, x, buffers[name]) for name, x in copies.items()]
        counted = whole and any(launch.counts for launch in built.launches)
        return outputs, [launch for launch in found if launch is not None], counted

    def kept(self) -> tuple[Built, ...]:
        """Everything that was built so far."""
        return tuple(self._built.values())

    def built(self, cache: Cache, dims: Mapping[str, int], dtype: str, tokens: int) -> Built:
        """Kernels for these heads and head dims, this page size and these schedules."""
        compiled = self.step
        plan = compiled.plan(dims, dtype)
        exact = cache.deterministic
        schedules = [compiled.schedule(kernel, dims) for kernel in plan.kernels]
        if exact:
            schedules = [by_tokens(k.spec, s) for k, s in zip(plan.kernels, schedules, strict=True)]
        else:
            schedules = [
                s
                if k.name in compiled.schedules and serves(k.spec, s, tokens)
                else for_steps(k.spec, s, compiled.target, cache.batch, tokens)
                for k, s in zip(plan.kernels, schedules, strict=True)
            ]
            schedules = beside_scans(plan.kernels, schedules, compiled.schedules)
        few = tokens <= FEW and not exact
        key = (id(plan), cache.page, few, *schedules)
        if key not in self._built:
            scheduled = list(zip(plan.kernels, schedules, strict=True))
            self._built[key] = make(
                self.streamed, compiled, plan, scheduled, places(self.spec, plan, dims, cache.page), few
            )
            compiled.builds += len(self._built[key].kernels)
        return self._built[key]
