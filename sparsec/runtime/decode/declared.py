"""Which declaration a cache was made for: what another one keeps may bear the same names and mean something else."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsec.ir.error import InputError
from sparsec.ir.variant import Variant


@dataclass(frozen=True, slots=True)
class Declared:
    """A declaration as its caches know it: the digest of its graph, its inputs, and its name, which may differ."""

    digest: str
    inputs: tuple[str, ...]
    name: str = field(compare=False)


def declared(variant: Variant) -> Declared:
    """What caches of a variant know of it."""
    return Declared(variant.digest, tuple(variant.inputs), variant.name)


def check_own(own: Declared, cache: object, kind: type) -> None:
    """Raises InputError for what is no cache of this kind, or one of another declaration; equal ones share caches."""
    if not isinstance(cache, kind):
        raise InputError("cache", f"a {type(cache).__name__}", "decode writes into a cache", "op.init_cache(…)")
    found: Declared = cache.declared  # type: ignore[attr-defined]
    if found is not own and found != own:
        rule = f"this is a step of another declaration, {own.name}"
        raise InputError("cache", f"made for {found.name}", rule, "a cache of its own: init_cache of this layer")
