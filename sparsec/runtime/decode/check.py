"""What must hold of the tokens of a decode call, checked before the cache is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sparsec.ir.dims import bind as bind_dims
from sparsec.ir.error import InputError
from sparsec.ir.op import Op
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant
from sparsec.passes.stream import Streamed
from sparsec.passes.stream_spec import CacheSpec
from sparsec.runtime import bind
from sparsec.runtime.decode.cache_layout import Bank, Place
from sparsec.runtime.decode.cache_state import Cache

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def sizes(**given: object) -> None:
    """Sizes of a cache are whole numbers of at least 1."""
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(name, f"{name} = {value!r}", "sizes of a cache are whole numbers", "1 or more")


def levels(spec: CacheSpec, max_length: int) -> None:
    """Levels of states reach over as many tokens as a sequence may have."""
    if spec.most is not None and max_length > spec.most:
        rule = f"{spec.most.bit_length()} levels reach over {spec.most} tokens"
        raise InputError("max_length", f"max_length = {max_length}", rule, "declare more levels")


def pool(page: int, wanted: int) -> None:
    """A shared pool's pages hold whole chunks and strides."""
    if page != wanted:
        raise InputError("pool", f"pages of {page} tokens", "a page holds whole chunks and strides", f"page = {wanted}")


def given(streamed: Streamed, tokens: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The tensors by name; rows of chunks may be left out where no chunk is completed."""
    import torch

    inputs, found = streamed.given, dict[str, torch.Tensor]()
    known = ", ".join(inputs)
    first = {held.initial for held in streamed.spec.states}
    for name, x in tokens.items():
        if name not in inputs and name in first:
            rule = "sequences have states from their first token on"
            raise InputError(name, "given with a step", rule, f"init_cache(states={{'{name}': …}})")
        if name not in inputs:
            raise InputError(name, "not an input", f"a step takes {known}", did_you_mean(name, inputs))
        if x is not None and not isinstance(x, torch.Tensor):
            raise InputError(name, f"a {type(x).__name__}", "inputs are tensors", "torch.as_tensor(…)")
        if x is not None:
            found[name] = x
    chunks = {k.name for k in streamed.spec.kept if k.unit > 1}
    for name in inputs:
        if name not in found and name not in chunks:
            raise InputError(name, "missing", f"a step takes {known}", f"give it: {name}=…")
    return found | {twin: found[name] for twin, name in streamed.twins.items()}


def first_states(spec: CacheSpec, given: Mapping[str, object]) -> None:
    """First states are those that the variant declares, all of them."""
    import torch

    wanted = list(dict.fromkeys(held.initial for held in spec.states if held.initial is not None))
    known = ", ".join(wanted) or "none"
    for name, x in given.items():
        if name not in wanted:
            raise InputError("states", name, f"the variant declares first states {known}", did_you_mean(name, wanted))
        if not isinstance(x, torch.Tensor):
            raise InputError(name, f"a {type(x).__name__}", "first states are tensors", "torch.as_tensor(…)")
    for name in wanted:
        if name not in given:
            rule = f"the variant declares first states {known}"
            raise InputError(name, "missing", rule, f"init_cache(states={{'{name}': …}})")


def named(variant: Variant, tokens: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The inputs of what is computed before the cache is touched."""
    import torch

    found = {name: x for name in variant.inputs if isinstance(x := tokens.get(name), torch.Tensor)}
    for name in variant.inputs:
        if name not in found:
            raise InputError(name, "missing", "new keys are made of it before they are kept", f"give it: {name}=…")
    return found


def count(streamed: Streamed, tokens: Mapping[str, Tensor]) -> int:
    """The number of new tokens, the same for every input that has rows per token."""
    named = [*streamed.spec.fresh, *(k.name for k in streamed.spec.kept if k.unit == 1)]
    counts = {n: tokens[n].shape[1] for n in named if tokens[n].dim() > 1}
    if not counts:
        raise InputError(named[0], f"shape {tuple(tokens[named[0]].shape)}", "tokens are [B, T, …]", "give it rows")
    first, number = next(iter(counts.items()))
    for name, other in counts.items():
        if other != number:
            rule = f"`{first}` has {number} new tokens"
            raise InputError(name, f"{other} new tokens", rule, "give every input the same new tokens")
    return number


def dims(streamed: Streamed, cache: Cache, tokens: Mapping[str, Tensor], new: int) -> tuple[dict[str, int], str]:
    """The dims of a full cache, with the new tokens as queries, and the dtype of the call.

    Raises InputError where a shape, dtype or number of rows does not fit.
    """
    import torch

    spec, length = streamed.spec, max(cache.known_lengths, default=0) + new
    units = {k.name: k.unit for k in spec.kept}
    shapes = {}
    for name, declared in streamed.variant.inputs.items():
        x = tokens.get(name)
        shape = tuple(x.shape) if x is not None else tuple(-1 for _ in declared.shape)
        if name in units and x is None:
            _rows(cache, name, 0, units[name], new)
        if name in units and x is not None and len(shape) > 1:
            _rows(cache, name, shape[1], units[name], new)
            shape = (shape[0], -(-length // units[name]), *shape[2:])
        shapes[name] = shape
    present = _present(streamed, tokens, shapes)
    found = dict(bind_dims(streamed.variant, present))
    if found.get("B", cache.batch) != cache.batch:
        rule = f"the cache was made for {cache.batch} sequences"
        raise InputError("cache", f"a batch of {found['B']}", rule, "give every sequence its tokens")
    found |= {streamed.keys: cache.max_length, streamed.queries: new, "q_offset": cache.max_length - new}
    whole = {n: x for n, x in tokens.items() if n in streamed.variant.inputs}
    whole |= {name: torch.empty(0) for name in (*streamed.ones, *(held.name for held in spec.states))}
    return found, bind.call_dtype(streamed.variant, _every(streamed, whole))


def rows(cache: Cache, wanted: Mapping[str, Place], device: torch.device) -> None:
    """Tokens are like those that the cache was filled with: the rows' extents, dtype and device."""
    held, lengths = cache.memory.places, cache.memory.lengths
    if lengths is None:
        return
    if lengths.device != device:
        there = lengths.device
        raise InputError("cache", f"tokens on {device}", f"the cache is on {there}", f".to('{there}')")
    for name, place in wanted.items():
        if (place.row, place.dtype) != (held[name].row, held[name].dtype):
            rule = f"the cache has rows of {held[name].dtype} {list(held[name].row)}"
            raise InputError(
                name, f"rows of {place.dtype} {list(place.row)}", rule, "tokens like those before, or a new cache"
            )


def same_states(cache: Cache, banks: Sequence[Bank], device: torch.device) -> None:
    """Tokens are like those that a cache of fixed size was filled with."""
    for bank in banks:
        held = cache.memory.states[bank.name]
        found, wanted = (bank.shape, bank.dtype, device), (held.shape[1:], str(held.dtype)[6:], held.device)
        if found != wanted:
            value, rule = (f"rows of {bank.name} {x[1]} {list(x[0])} on {x[2]}" for x in (found, wanted))
            raise InputError("cache", value, f"the cache has {rule}", "tokens like those before, or a new cache")


def lists(streamed: Streamed, tokens: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
    """Given lists name units of a full cache; what a CUDA graph captures was checked by the step before."""
    import torch

    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if not capturing and any(n.op is Op.GIVEN for n in streamed.variant.nodes):
        bind.check_indices(streamed.variant, tokens, dims)


def captured(streamed: Streamed, tokens: Mapping[str, Tensor], new: int) -> None:
    """A CUDA graph has room for every row of a chunk that some step completes."""
    for kept in streamed.spec.kept:
        due = -(-new // kept.unit)
        have = tokens[kept.name].shape[1] if kept.name in tokens else 0
        if have < due:
            rule = f"a graph serves every step, and {new} new tokens may complete {due} chunks of {kept.unit}"
            raise InputError(kept.name, f"{have} rows", rule, "give rows to every call: a graph ignores the incomplete")


def _present(
    streamed: Streamed, tokens: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes with those of rows that were left out as the others say they are."""
    from sparsec.scalar.evaluate import evaluate

    known: dict[str, int] = {}
    for name in tokens:
        for dim, size in zip(streamed.variant.inputs[name].shape, shapes[name], strict=False):
            if dim.head == "var":
                known.setdefault(str(dim.value), size)
    for name, spec in streamed.variant.inputs.items():
        if name not in tokens:
            missing = [str(d) for d in spec.shape if d.head == "var" and d.value not in known]
            if missing:
                raise InputError(name, "missing", f"no other input says what {missing[0]} is", f"give it: {name}=…")
    return {
        name: shapes[name] if name in tokens else tuple(int(evaluate(d, known)) for d in spec.shape)
        for name, spec in streamed.variant.inputs.items()
    }


def _every(streamed: Streamed, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every input, with another of its kind in place of rows that were left out."""
    like = next(iter(tokens.values()))
    kinds = {s.dtype: tokens[n] for n, s in streamed.variant.inputs.items() if n in tokens}
    return {n: tokens.get(n, kinds.get(s.dtype, like)) for n, s in streamed.variant.inputs.items()}


def _rows(cache: Cache, name: str, rows: int, unit: int, new: int) -> None:
    """Rows of chunks: one for each that the new tokens complete; more are ignored."""
    due = max(((n + new) // unit - n // unit for n in cache.known_lengths), default=0)
    if unit > 1 and rows < due:
        rule = f"the new tokens complete {due} chunks of {unit} tokens"
        raise InputError(name, f"{rows} rows", rule, "give a row for each chunk that is completed")


def parts(
    streamed: Streamed, cache: Cache, tokens: Mapping[str, Tensor], new: int
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The new tokens in passes of ``cache.step``; each is worked out when the one before is in the cache."""
    units = {k.name: k.unit for k in streamed.spec.kept}
    begun = cache.known_lengths
    if any(u > 1 for u in units.values()) and len(set(begun)) > 1:
        rule = f"sequences of different lengths take at most {cache.step} tokens at a time"
        raise InputError("cache", f"{new} new tokens", rule, "give fewer, or a larger step to init_cache")
    for start in range(0, new, cache.step):
        stop = min(start + cache.step, new)
        part = {}
        for name, x in tokens.items():
            unit = units.get(name, 1 if name in streamed.spec.fresh else 0)
            first, last = ((begun[0] + at) // unit - begun[0] // unit if unit else 0 for at in (start, stop))
            part[name] = x[:, first:last] if unit else x
        yield part, stop - start
