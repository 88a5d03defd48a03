"""States of a cache: what sequences begin with, copies of them, and how they are put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError
from sparsec.runtime.decode.cache_layout import Bank
from sparsec.runtime.decode.declared import Declared
from sparsec.runtime.decode.memory import Memory
from sparsec.runtime.decode.snapshot import Snapshot

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def first_states(
    given: Mapping[str, Tensor], banks: Sequence[Bank], count: int, device: torch.device
) -> dict[str, Tensor]:
    """The states that sequences begin with, by bank. Raises InputError where one does not fit."""
    found = {}
    for bank in banks:
        if bank.initial is None:
            continue
        x, each = given[bank.initial], (count, *bank.shape)
        if tuple(x.shape) not in (each, bank.shape) or str(x.dtype) != "torch.float32" or x.device != device:
            value = f"{x.dtype} {list(x.shape)} on {x.device}"
            rule = f"first states are float32 {list(each)}, or {list(bank.shape)} for all alike, on {device}"
            raise InputError(bank.initial, value, rule, "give init_cache states of that shape")
        found[bank.name] = x.detach().clone()
    return found


def begin(memory: Memory, own: slice) -> None:
    """Some sequences' states as they are before any token."""
    for name, held in memory.states.items():
        first = memory.first.get(name)
        if first is None:
            held[own].zero_()
        else:
            held[own].copy_(first[own] if first.dim() == held.dim() else first)


def copied(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies."""
    return {name: x.clone() for name, x in states.items()}


def put_back(memory: Memory, own: slice, snapshot: Snapshot) -> None:
    """States and lengths of a snapshot; those of first tokens where it was taken before any."""
    if not snapshot.states:
        begin(memory, own)
    for name, x in snapshot.states.items():
        memory.states[name][own].copy_(x)
    if memory.lengths is not None:
        lengths = memory.lengths[own]
        if snapshot.counted is None:
            lengths.zero_()
        else:
            lengths.copy_(snapshot.counted)


def _alike(memory: Memory, snapshot: Snapshot) -> None:
    """Raises InputError where states of a snapshot are not like those of a cache."""
    for name, x in snapshot.states.items():
        held = memory.states.get(name)
        if held is None:
            rule = f"the cache holds {', '.join(memory.states) or 'no states before its first tokens'}"
            raise InputError("snapshot", name, rule, "restore it into a cache that had tokens of these sizes")
        found, wanted = ((list(s.shape[1:]), s.dtype, s.device) for s in (x, held))
        if found != wanted:
            value, rule = (f"{name} {s[1]} {s[0]} on {s[2]}" for s in (found, wanted))
            fix = "restore it into a cache of tokens like its own"
            raise InputError("snapshot", value, f"the cache holds {rule}", fix)


def outdate(memory: Memory) -> None:
    """Mark snapshots of which tokens were taken back: others may lie in their place."""
    for found in memory.snapshots:
        now = memory.known[found.first : found.first + len(found.lengths)]
        found.outdated = found.outdated or any(n < then for n, then in zip(now, found.lengths, strict=True))


def fits(memory: Memory, own: Declared, first: int, batch: int, snapshot: Snapshot) -> None:
    """Raises InputError where a snapshot is not one of these sequences."""
    if snapshot.declared != own:
        rule = f"this is a cache of another declaration, {own.name}"
        raise InputError("snapshot", f"of {snapshot.declared.name}", rule, "restore it into a cache of its variant")
    if len(snapshot.lengths) != batch:
        rule = f"these are {batch} sequences"
        raise InputError("snapshot", f"of {len(snapshot.lengths)} sequences", rule, "restore cache.sequences(…)")
    _alike(memory, snapshot)
    if memory.places and (snapshot not in memory.snapshots or snapshot.first != first):
        rule = "pages are not copied: tokens since are taken back from the same sequences"
        raise InputError("snapshot", "of other sequences", rule, "restore it where it was taken")
    if memory.places and snapshot.outdated:
        rule = "these sequences ended since, or were taken back further"
        raise InputError("snapshot", "outdated", rule, "take one anew")
