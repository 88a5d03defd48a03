"""The hand-written tile programs by name; between them they use every op of the tile language."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sparsec.testing.tile.attention import chunks, window
from sparsec.testing.tile.case import Case
from sparsec.testing.tile.loops import nested, recurrence, vectors
from sparsec.testing.tile.maps import axes, floats, integers
from sparsec.testing.tile.memory import gather, prefix, scatter
from sparsec.testing.tile.names import names
from sparsec.testing.tile.selection import top

CASES: dict[str, Callable[[], Case]] = {
    "window": window,
    "window_half": partial(window, dtype="float16"),
    "window_bfloat16": partial(window, dtype="bfloat16"),
    "window_one_token": partial(window, length=1),
    "window_of_one": partial(window, length=33, reach=1, group=1),
    "chunks": chunks,
    "chunks_half": partial(chunks, length=33, group=2, dtype="float16"),
    "gather": gather,
    "scatter": scatter,
    "prefix": prefix,
    "top_8_of_16": top,
    "top_16_of_16": partial(top, slots=16),
    "top_16_of_8": partial(top, slots=16, block=8),
    "top_1": partial(top, slots=1),
    "top_few_units": partial(top, units=5),
    "recurrence": recurrence,
    "recurrence_of_none": partial(recurrence, steps=0),
    "nested": nested,
    "vectors": vectors,
    "vectors_half": partial(vectors, dtype="float16"),
    "floats": floats,
    "integers": integers,
    "axes": axes,
    "names": names,
}
"""Cases by name; make one by calling it."""
