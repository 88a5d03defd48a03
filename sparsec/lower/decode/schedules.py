"""How kernels of a decode step are made: those of the forward, or where queries are few those that share keys."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.decode import combine as decode_combine
from sparsec.lower.decode import combine_token
from sparsec.lower.decode import dense as decode_dense
from sparsec.lower.decode import lists as decode_lists
from sparsec.lower.decode import logits as decode_logits
from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.decode import select as decode_select
from sparsec.lower.decode.company import ALONE, SHARED, Company
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.gpu import row_tile
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.lower.scan.token import one_token
from sparsec.lower.select import children
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.selection.parents import Parents
from sparsec.plan.specs import Combine, GatheredAttention, Selector, TiledAttention
from sparsec.plan.states.scan_specs import Scan
from sparsec.tile.schedule import Schedule

MOST = 32
"""Splits of a row's keys at most."""
TILE = 32 * 1024
"""Bytes of a tile of keys and values of which a program keeps several in flight."""
LISTED = 64
"""Programs at most that rank a unit's candidates by their scores; they share no softmax, so are more and smaller."""
FULL = 16
"""Lists at most where so many of a unit fill the processors: their reader makes one of them."""
CROWD = 8
"""Programs of a processor that keep its memory busy without stages."""
WHOLE = 0.8
"""Lists per processor from which a program reads a whole one: enough bytes are under way, and nothing is merged."""
FEW = 16
"""New tokens up to which a step is one of few queries."""


def lower(spec: AnySpec, schedule: Schedule, beside: Company = ALONE) -> Lowered:
    """The programs of a kernel under a schedule of a step, beside others of its step."""
    partner = beside.partner
    if isinstance(spec, Combine) and beside.parts:
        return decode_combine.lower(spec, schedule, beside.parts)
    if isinstance(spec, Scan) and schedule.order == one_token.ORDER:
        return one_token.lower(spec, schedule)
    if isinstance(spec, Combine) and schedule.order == one_token.ORDER:
        return combine_token.lower(spec, schedule)
    if schedule.order != SHARED:
        return lower_kernel(spec, schedule)
    if isinstance(spec, TiledAttention):
        left = None
        if isinstance(partner, Selector):
            left = decode_dense.Left(decode_logits.logits(partner, spec.pieces[0].length), partner)
        return decode_dense.lower(spec, schedule, left, beside.merged)
    if isinstance(spec, GatheredAttention):
        return decode_lists.lower(spec, schedule, beside.merged, beside.choice)
    assert isinstance(spec, Selector)
    sums = None
    if isinstance(partner, TiledAttention):
        sums = decode_merge.parts(decode_dense.as_rows(partner), schedule.splits).lse
    return decode_select.lower(spec, schedule, sums, beside.merged)


def schedule(spec: AnySpec, found: Schedule, processors: int, batch: int) -> Schedule:
    """A forward's schedule as one for a few new tokens: splits until every processor has two programs."""
    if isinstance(spec, GatheredAttention) and decode_lists.fits(spec) is None:
        share = chunks.sharing(spec)
        rows = row_tile(share) if found.split_dims else share
        block = max(b for b in (16, 32, 64) if b <= max(found.block, 16)) if found.split_dims else found.block
        units = spec.heads // share * -(-share // rows)
        found = replace(found, stages=_stages(spec, block), warps=4) if found.split_dims else found
        if spec.per == "chunk" and batch * units >= WHOLE * processors:
            return _shared(found, rows, block, 1)
        most = max(spec.slots * -(-spec.chunk // block) if spec.per == "joint" else spec.slots, 2)
        return _shared(found, rows, block, _splits(processors, batch * units, min(most, MOST)))
    if isinstance(spec, TiledAttention) and decode_dense.fits(spec) is None:
        share = spec.heads // spec.kv_heads
        rows = row_tile(share) if found.split_dims else share
        if share <= rows:
            found = replace(found, stages=_stages(spec, found.block), warps=4) if found.split_dims else found
            return _shared(found, rows, found.block, _splits(processors, batch * spec.kv_heads, MOST))
    if isinstance(spec, Selector) and decode_select.fits(spec) is None:
        units = spec.heads // (spec.heads // spec.kv_heads if spec.group else 1)
        wide = replace(found, stages=3) if found.split_dims else found
        exact = spec.key_dtype is not None and spec.key_dtype != spec.dtype  # a key is then several tiles
        block = found.block if not found.split_dims else 32 if exact else 64
        if spec.softmax:  # as many as an attention has that may leave its logits
            return _shared(wide, 1, block, _splits(processors, batch * units, MOST))
        splits = _splits(CROWD * processors, batch * units, LISTED)
        splits = min(splits, FULL) if FULL * batch * units >= processors else splits
        if spec.parents is not None:
            block = _covering(spec.parents, block)
            splits = _most(min(splits, children.tiles(spec.parents, block)))
        many = found.split_dims and batch * units * splits >= CROWD * processors
        return _shared(replace(wide, stages=1) if many else wide, 1, block, splits)
    if isinstance(spec, GatheredAttention) and found.order != "query_outer":
        rows = row_tile(chunks.sharing(spec)) if found.split_dims else chunks.sharing(spec)
        return replace(found, order="query_outer", rows=rows, phases="branch", registers=0, maximum=True)
    return found


def _shared(found: Schedule, rows: int, block: int, splits: int) -> Schedule:
    return replace(found, order=SHARED, rows=rows, block=block, splits=splits, value_block=0, registers=0, maximum=True)


def _splits(processors: int, programs: int, most: int) -> int:
    """A power of two, at least 2: as many programs again in each split, up to two for every processor."""
    wanted = max(2, 2 * processors // max(programs, 1))
    return min(_most(wanted), _most(most))


def _most(number: int) -> int:
    """The largest power of two up to a number."""
    return 1 << (number.bit_length() - 1)


def _covering(above: Parents, block: int) -> int:
    """Candidates of a tile: no more than it takes for all children."""
    return min(block, max(16, 1 << (above.slots * above.fanout - 1).bit_length()))


def _stages(spec: TiledAttention | GatheredAttention, block: int) -> int:
    """Five where two programs' tiles of keys and values find room on a processor, else three.

    Three for chosen chunks: their numbers are known before the loop, so that every stage is a tile under way.
    """
    if isinstance(spec, GatheredAttention):
        return 3
    size = block * (spec.head_dim + spec.value_dim) * (4 if spec.dtype == "float32" else 2)
    return 5 if size <= TILE else 3
