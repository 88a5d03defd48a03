"""The cache of a batch of sequences: lengths, block tables and pages on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from sparsec.ir.error import InputError
from sparsec.runtime.decode.cache_layout import BLOCKS, Bank, Place
from sparsec.runtime.decode.declared import Declared
from sparsec.runtime.decode.memory import Memory
from sparsec.runtime.decode.pages import Pool, ring_table
from sparsec.runtime.decode.restore import begin, copied, first_states, fits, outdate, put_back
from sparsec.runtime.decode.snapshot import Snapshot

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Cache:
    """What ``init_cache`` returns; ``decode`` writes into it.

    Attributes:
        declared: the declaration that it was made for.
        batch: sequences.
        max_length: tokens that a sequence may have.
        page: tokens of a page.
        step: the most tokens that one pass over the kernels adds where there are rings; longer calls make several.
        deterministic: whether steps run under the forward's schedules, so that results are its bit for bit.
        cold: whether what is read by chosen chunks alone lives in the host's memory.
        first: the states that sequences begin with, by the name of the declared input.
    """

    def __init__(
        self, declared: Declared, batch: int, max_length: int, page: int, step: int, pool: Pool | None,
        deterministic: bool, cold: bool = False, first: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.declared = declared
        self.batch, self.max_length, self.page, self.step = batch, max_length, page, step
        self.deterministic, self.cold, self.first = deterministic, cold, dict(first or {})
        self.pool = pool or Pool(batch * -(-max_length // page), page)
        self.shared = pool is not None
        self.memory = Memory([0] * batch, [[] for _ in range(batch)], [0] * batch)
        self._first = 0

    def sequences(self, first: int, count: int = 1) -> Cache:
        """The same cache for some of its sequences only, so that they get tokens that the others do not."""
        if first < 0 or count < 1 or first + count > self.batch:
            rule = f"the cache has {self.batch} sequences"
            raise InputError("sequences", f"{first} … {first + count - 1}", rule, "name some of them")
        own, pages = self.declared, self.pool
        found = Cache(own, count, self.max_length, self.page, self.step, pages, self.deterministic, self.cold)
        found.shared, found.memory, found._first, found.first = (
            self.shared,
            self.memory,
            self._first + first,
            self.first,
        )
        return found

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Pages belong to the pool and the process: no copy and no file holds a cache."""
        rule = "its memory is shared with its views and its pool"
        raise InputError("cache", "copied or pickled", rule, "snapshot() and restore(), or a new init_cache")

    @property
    def known_lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, as far as the host was told: replays of a CUDA graph tell by ``replayed``."""
        return tuple(self.memory.known[self._own])

    @property
    def lengths(self) -> Tensor | None:
        """int32 ``[batch]`` on the device; None before the first tokens. Where only states are kept, it stays 0."""
        return None if self.memory.lengths is None else self.memory.lengths[self._own]

    @property
    def ends(self) -> Tensor | None:
        """int32 ``[batch]`` on the device: lengths with the tokens of the step that runs."""
        return None if self.memory.ends is None else self.memory.ends[self._own]

    @property
    def tables(self) -> dict[str, Tensor]:
        """Block tables by name, int32 ``[batch, blocks]``."""
        return {name: table[self._own] for name, table in self.memory.tables.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Pages ``[pages, rows, …]`` by the name of what they hold."""
        return self.memory.tensors

    @property
    def states(self) -> dict[str, Tensor]:
        """Matrix states as they are now, fp32 ``[batch, parts, heads, rows, columns]``, by the step's input."""
        return {name: x[self._own] for name, x in self.memory.states.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of pages, rings, tables and states where kernels run, of all sequences; of a shared pool, all of it.

        Memory is taken when the first tokens say how large a row is: before them, it is 0.
        """
        held = [x for name, x in self.tensors.items() if not self.memory.places[name].cold]
        return sum(
            x.numel() * x.element_size() for x in (*held, *self.memory.tables.values(), *self.memory.states.values())
        )

    @property
    def cold_nbytes(self) -> int:
        """Bytes of pages in the host's memory."""
        held = [x for name, x in self.tensors.items() if self.memory.places[name].cold]
        return sum(x.numel() * x.element_size() for x in held)

    @property
    def _own(self) -> slice:
        return slice(self._first, self._first + self.batch)

    def allocate(
        self, places: Mapping[str, Place], device: torch.device, banks: Sequence[Bank] = (), chunk: int = 1
    ) -> None:
        """Make pages, tables and states for all sequences, once the first tokens say how large a row is.

        Tables know whole chunks: pages of the last one are looked up as far as it goes, though none of their rows.
        """
        import torch

        memory, count = self.memory, len(self.memory.known)
        memory.first = first_states(self.first, banks, count, device)
        memory.states = {
            b.name: torch.zeros(count, *b.shape, dtype=getattr(torch, b.dtype), device=device) for b in banks
        }
        begin(memory, slice(0, count))
        memory.places = dict(places)
        memory.lengths = torch.zeros(count, dtype=torch.int32, device=device)
        memory.ends = torch.zeros_like(memory.lengths)
        if not places:
            return
        blocks = -(-(-(-self.max_length // chunk) * chunk) // self.page)
        memory.tables = {BLOCKS: torch.zeros(count, blocks, dtype=torch.int32, device=device)}
        for name, place in places.items():
            dtype = getattr(torch, place.dtype)
            if place.ring is None:
                found = self.pool.tensor(name, place.paged.rows, place.row, dtype, device, place.cold)
                memory.tensors[name] = found
            else:
                self._ring(name, place, dtype, device)
        if not self.shared:
            for number in range(count):
                self._reserve(number, self.max_length)

    def _ring(self, name: str, place: Place, dtype: torch.dtype, device: torch.device) -> None:
        """Pages of a ring, each sequence's its own, and the table that comes round."""
        import torch

        assert place.ring is not None
        memory, count = self.memory, len(self.memory.known)
        table, pages = ring_table(self.max_length, self.page, *place.ring, self.step)
        own = torch.tensor(table, dtype=torch.int32, device=device)
        first = torch.arange(count, dtype=torch.int32, device=device)[:, None] * pages
        memory.tables.setdefault(place.paged.table, first + own)
        shape = (count * pages, place.paged.rows, *place.row)
        memory.tensors[name] = torch.zeros(shape, dtype=dtype, device=device)

    def reserve(self, tokens: int) -> None:
        """Pages for so many more tokens of each sequence; on a shared pool needed before a CUDA graph is replayed.

        Raises InputError where the pool has too few, or a sequence would be longer than ``max_length``.
        """
        wanted = [n + tokens for n in self.known_lengths]
        if max(wanted, default=0) > self.max_length:
            rule = f"the cache was made for {self.max_length} tokens"
            raise InputError("cache", f"{max(wanted)} tokens", rule, "init_cache with a larger max_length")
        for number, length in enumerate(wanted, self._first):
            self._reserve(number, length)

    def _reserve(self, number: int, length: int) -> None:
        import torch

        have, table = self.memory.pages[number], self.memory.tables.get(BLOCKS)
        wanted = -(-length // self.page) - len(have)
        if table is None or wanted <= 0 or all(p.ring is not None for p in self.memory.places.values()):
            return
        more = torch.tensor(self.pool.take(wanted), dtype=torch.int32)
        table[number, len(have) : len(have) + wanted] = more.to(table.device, non_blocking=True)
        have += more.tolist()

    def replayed(self, tokens: int) -> None:
        """Tell that every sequence has so many more tokens, as after the replay of a CUDA graph."""
        memory, own = self.memory, self._own
        memory.known[own] = [n + tokens for n in self.known_lengths]
        memory.written[own] = map(max, memory.written[own], memory.known[own])

    def rewind(self, tokens: int) -> None:
        """Forget the last so many tokens of every sequence, as after a draft that was refused: at most ``step``.

        Raises InputError where a sequence has fewer, a ring may have dropped what they replaced, or there are states.
        """
        least = min(self.known_lengths)
        if self.memory.states:
            rule = "states do not know what they were before a token"
            raise InputError("cache", f"{tokens} tokens to forget", rule, "cache.snapshot() first, then restore it")
        if not 0 <= tokens <= min(least, self.step):
            rule = f"sequences have {least} tokens, and rings keep what {self.step} tokens replace"
            raise InputError("cache", f"{tokens} tokens to forget", rule, "rewind fewer")
        self._take_back([n - tokens for n in self.known_lengths])
        lengths = self.lengths
        if lengths is not None:
            lengths -= tokens

    def _take_back(self, lengths: Sequence[int]) -> None:
        """Sequences as they were at these lengths. Raises InputError where a ring dropped what they need."""
        now, written = self.known_lengths, self.memory.written[self._own]
        taken = max(n - to for n, to in zip(now, lengths, strict=True))
        gone = max(w - n for w, n in zip(written, now, strict=True))
        missing = max(w - to for w, to in zip(written, lengths, strict=True))
        if missing > self.step and any(p.ring is not None for p in self.memory.places.values()):
            rule = f"{gone} were forgotten already, and rings keep what {self.step} tokens replace"
            raise InputError("cache", f"{taken} tokens to forget", rule, "rewind fewer, or init_cache(step=…)")
        self.memory.known[self._own] = lengths
        outdate(self.memory)

    def snapshot(self) -> Snapshot:
        """These sequences as they are now, to be restored: a copy of their states, and how many tokens they have.

        Pages are not copied: what a later ``restore`` takes back are the tokens since.
        """
        own = copied(self.states)
        found = Snapshot(self.declared, self._first, self.known_lengths, own, self.lengths_now())
        self.memory.snapshots.add(found)
        return found

    def restore(self, snapshot: Snapshot) -> None:
        """Make these sequences what they were, without waiting for the device; as often as one likes.

        States alone may be restored into as many other sequences, of this cache or one like it. Raises InputError
        where pages no longer hold what was read then: sequences ended, were taken back further, or rings dropped it.
        """
        fits(self.memory, self.declared, self._first, self.batch, snapshot)
        if self.memory.places:
            self._take_back(snapshot.lengths)
        self.memory.known[self._own] = snapshot.lengths
        put_back(self.memory, self._own, snapshot)

    def lengths_now(self) -> Tensor | None:
        """A copy of the lengths on the device: rows of pages, and steps of ladders, count by them."""
        return self.lengths.clone() if self.lengths is not None else None

    def free(self) -> None:
        """End these sequences: their pages go back to the pool, and they begin anew at length 0, from first states."""
        for number in range(self._first, self._first + self.batch):
            self.memory.known[number] = self.memory.written[number] = 0
            if self.shared:
                self.pool.give(self.memory.pages[number])
                self.memory.pages[number] = []
        outdate(self.memory)
        begin(self.memory, self._own)
        if self.lengths is not None:
            self.lengths.zero_()
