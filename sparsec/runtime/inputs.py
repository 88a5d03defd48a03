"""Random inputs that fit a variant, for trying it out and for tests: ``sparsec.inputs(variant, TQ=512, H=8)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.ir.dims import bind, value
from sparsec.ir.error import InputError
from sparsec.ir.lengths import lengths
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant, dim_names
from sparsec.runtime.bind import FLOAT_DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEFAULTS = {"B": 1, "T": 256, "TQ": 256, "TK": 256, "H": 4, "HKV": 2, "D": 64, "DV": 64, "DR": 64}
OTHERWISE = 16  # any dim that has no customary size
IDS = 4  # different values of an int32 input that is no index
ROWS = 1024  # queries whose random lists are drawn at a time

KINDS = {
    "feature": "feature", "decay": "decay",
    **dict.fromkeys(("beta", "weight", "gamma", "level_gate"), "rate"),
    **dict.fromkeys(("key", "erase_a", "erase_b"), "key"),
}  # fmt: skip
"""What operands have to be: not negative, at most 0, between 0 and 1, or of length 1, as longer ones would make a delta
rule grow without bound."""


def inputs(
    variant: Variant, *, dtype: str = "float32", device: str = "cpu", seed: int = 0, **dims: int
) -> dict[str, Tensor]:
    """Tensors by input name: normal floats, log-decays below 0, rates in (0, 1), given indices valid and causal.

    Keys of delta rules have length 1.

    Dims are set by name; ``T`` sets both lengths. The rest: B 1, lengths 256, H 4, HKV 2, D = DV = DR = 64, others 16.

    Raises:
        InputError: a dim that the variant does not have or that is not a whole number, dims that do not go together
            (H must be divisible by HKV), no dtype, no device.
    """
    import torch

    env = sizes(variant, dims)
    try:
        generator = torch.Generator(device=device).manual_seed(seed)
    except RuntimeError as error:
        rule = f"torch knows no such device here: {str(error).splitlines()[0]}"
        raise InputError("device", repr(device), rule, "'cpu' or 'cuda'") from error
    roles = _roles(variant)
    return {
        str(node["name"]): _draw(node, roles.get(node), env, _dtype(dtype), generator) for node in variant.parameters
    }


def _dtype(name: object) -> torch.dtype:
    """A dtype by name or itself: one that kernels take, or float64 for the oracle."""
    import torch

    plain, known = str(name).removeprefix("torch."), (*FLOAT_DTYPES, "float64")
    if plain not in known:
        raise InputError("dtype", repr(name), f"inputs are {', '.join(known)}", did_you_mean(plain, known))
    found = getattr(torch, plain)
    assert isinstance(found, torch.dtype)
    return found


def sizes(variant: Variant, given: Mapping[str, int]) -> dict[str, int]:
    """Every dim that the variant's inputs name: as given, else customary.

    Raises:
        InputError: as ``inputs``; dims that no call may have together, such as H = 5 and HKV = 2.
    """
    names, tokens = dim_names(variant), lengths(variant).names
    for name, size in given.items():
        if name not in names | {"T"}:
            raise InputError(name, f"{name} = {size}", f"{variant.name} has no such dim", did_you_mean(name, names))
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(name, f"{name} = {size}", "a dim is a whole number", "0 or more")
    both = dict.fromkeys(tokens, given.get("T", DEFAULTS["T"]))
    env = {name: {**DEFAULTS, **both, **given}.get(name, OTHERWISE) for name in names}
    bind(variant, {name: [value(dim, env) for dim in spec.shape] for name, spec in variant.inputs.items()})
    return env


def _roles(variant: Variant) -> dict[Node, tuple[str, Node]]:
    """What an input is used as, where that narrows its values: the operand's name, or "indices", and its user."""
    roles: dict[Node, tuple[str, Node]] = {}
    given_up = {node.src[0] for node in variant.nodes if node.op is Op.EVICT}
    for node in variant.nodes:
        if node.op is Op.ATTEND and node.src[1].src and node.src[1].src[0] in given_up:
            roles |= dict.fromkeys((node.src[0], node.src[1].src[0]), ("feature", node))
        for name, source in node.operands.items():
            roles.setdefault(source, (name, node))
        if node.op is Op.WRITE and node["rule"] == "delta":
            roles.setdefault(node.src[1], ("key", node))
        if node.op is Op.GIVEN:
            user = next((n for n in variant.nodes if n.op is Op.ATTEND and node in n.positional), node)
            roles[node.src[0]] = ("indices", user)
    return roles


def kinds(variant: Variant) -> dict[str, str]:
    """The inputs that may not be any number, with what they have to be, see ``KINDS``."""
    found = {str(node["name"]): KINDS.get(name) for node, (name, _) in _roles(variant).items() if node.op is Op.INPUT}
    return {name: kind for name, kind in found.items() if kind is not None}


def _draw(
    node: Node, role: tuple[str, Node] | None, env: Mapping[str, int], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    import torch

    shape = [value(dim, env) for dim in node.shape]
    name, user = role or ("", node)
    if node.dtype == "int32":
        return _integers(shape, name, user, env, generator)
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    kind = KINDS.get(name, "")
    if kind == "feature":
        drawn = drawn.abs()
    if kind == "decay":
        drawn = torch.nn.functional.logsigmoid(drawn + 3)
    if kind == "rate":
        drawn = drawn.sigmoid()
    if kind == "key":
        drawn = torch.nn.functional.normalize(drawn, dim=-1)
    return drawn.to(torch.float32 if node.dtype == "float32" else dtype)


def _integers(shape: list[int], name: str, user: Node, env: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Indices of units, lengths of lists, or else ids that ascend along the last dim, as document ids do."""
    import torch

    if name == "indices" and user.op is Op.ATTEND:
        return _indices(shape, user, env, generator)
    above = value(user.shape[-1], env) + 1 if name == "counts" else IDS
    drawn = torch.randint(0, above, shape, generator=generator, device=generator.device)
    return (drawn if name == "counts" else drawn.sort(dim=-1).values).to(torch.int32)


def _indices(shape: list[int], attend: Node, env: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Distinct units that have started by the query, its own among them, -1 where there are not enough."""
    import torch

    batch, queries, scopes, slots = shape
    selection = next(s for s in attend.positional[2:] if s.op is Op.GIVEN)
    size, tokens = selection.integer("size"), value(attend.src[1].shape[1], env)
    each, units = selection.integer("query_block"), -(-tokens // size)
    offset = tokens - value(attend.src[0].shape[1], env)
    done = []
    for start in range(0, queries, ROWS):
        own = (torch.arange(start, min(start + ROWS, queries), device=generator.device) * each + offset) // size
        rank = torch.rand(batch, len(own), scopes, units, generator=generator, device=generator.device)
        unit = torch.arange(units, device=generator.device)
        rank = torch.where(unit == own[:, None, None], 2.0, rank).masked_fill(unit > own[:, None, None], -1.0)
        best = rank.topk(min(slots, units), dim=-1)
        ids = best.indices.masked_fill(best.values < 0, -1)
        done.append(torch.nn.functional.pad(ids, (0, slots - ids.shape[-1]), value=-1))
    ids = torch.cat(done, dim=1) if done else torch.empty(shape, dtype=torch.int64, device=generator.device)
    return _ordered(ids, str(selection["order"])).to(torch.int32)


def _ordered(ids: Tensor, order: str) -> Tensor:
    """Newest or oldest first, -1 last."""
    if order == "score":
        return ids
    key = -ids if order == "newest" else ids
    return ids.gather(-1, key.masked_fill(ids < 0, 2**31).argsort(dim=-1))
