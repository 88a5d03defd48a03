"""The ops on matrix states: gather what a token brings, walk over the tokens, read; one row of the table per op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle import states, vector_states
from sparsec.oracle.apart import apart
from sparsec.oracle.fenwick import Ladder
from sparsec.oracle.states import Rule, Written
from sparsec.oracle.steps import Stepped
from sparsec.oracle.values import Bank, Chosen, OracleError, Value

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def state(ev: Evaluation, node: Node) -> Bank:
    """A bank ``[B,N,H,D,DV]``, zero unless its initial contents are given."""
    shape = [ev.batch, *(ev.dim(dim) for dim in node.shape[1:])]
    if not node.src:
        return Bank(torch.zeros(shape, dtype=torch.float64, device=ev.device))
    return Bank(ev.tensor(node.src[0]).expand(shape))


def write(ev: Evaluation, node: Node) -> Written:
    """The bank that every token writes."""
    bank, k, v = ev.whole(node.src[0]), ev.tensor(node.src[1]), ev.tensor(node.src[2])
    if not isinstance(bank, Bank) or node["row_topk"] is not None:
        what = "a state written twice and row_topk"
        raise OracleError(f"write: the oracle has no meaning yet for {what}; use states written once")
    steps = node.integer("steps")
    k = k.repeat_interleave(steps * bank.m.shape[2] // k.shape[2], dim=2)  # states may share keys
    levels = node.src[0].word("schedule") == "fenwick"
    share, active, ids = _shares(ev, node, k.shape[1], 1 if levels else bank.m.shape[1], bank.m.shape[2])
    rule = Rule(node.word("rule") == "delta", node.word("reads") == "undecayed", node.flag("freeze_unselected"))
    given = {name: ev.tensor(source) for name, source in node.operands.items() if name not in ("route", "weight")}
    erase = (given["erase_a"], given["erase_b"]) if "erase_a" in given else None
    if node.word("decay_kind") == "value":
        given["decay"] = given["decay"][..., None, :].expand(*given["decay"].shape[:3], *bank.m.shape[3:])
    quick = ev.form_name == "vector" and node.word("decay_kind") not in ("value", "full")
    brought = k, v, given.get("beta"), given.get("decay"), erase, share, active, rule
    if levels:
        quick = quick and not node.src[0].src
        return Ladder(bank.m[:, :1], *brought, quick, first=bank.m, offset=ev.q_offset)
    written = Written(bank.m, *brought, quick, ids)
    return written if steps == 1 else Stepped.of(written, steps)


def _shares(ev: Evaluation, node: Node, tokens: int, parts: int, heads: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """e, whether it is active ``[B,T,H,N]``, and lists; without a route all parts are, with e = 1, and no list."""
    if "route" not in node.operands:
        ones = torch.ones(ev.batch, tokens, heads, parts, dtype=torch.float64, device=ev.device)
        return ones, ones > 0, None
    route = ev.whole(node.operands["route"])
    assert isinstance(route, Chosen)
    weight = node.operands.get("weight")
    e = torch.ones(route.ids.shape, dtype=torch.float64, device=ev.device) if weight is None else ev.tensor(weight)
    named = route.ids[..., None] == torch.arange(parts, device=ev.device)
    found = torch.where(named, e[..., None], 0.0).sum(-2), named.any(-2), route.ids
    return tuple(x.repeat_interleave(heads // x.shape[2], dim=2) for x in found)  # type: ignore[return-value]


def residual(ev: Evaluation, node: Node) -> Tensor:
    """What a level leaves to the next ``[B,T,H,DV]``: by its recall after its write, or by its prediction before it."""
    v, written, k = ev.tensor(node.src[0]), ev.whole(node.src[1]), ev.tensor(node.src[2])
    assert isinstance(written, Written)
    share = states.renormalised(written.share, written.active) if node.flag("renormalise") else written.share
    there = written.active.tolist()
    banks = written.after if node.word("mode") == "post" else written.before
    gamma = ev.tensor(node.operands["gamma"]) if "gamma" in node.operands else torch.ones_like(v[..., 0])
    clip = float(node["clip"]) if isinstance(node["clip"], float | int) else None
    values, keys, matrices, shares, gammas = (apart(x, 3) for x in (v, k, banks, share, gamma))

    def one(b: int, t: int, h: int) -> Tensor:
        own, at = (values[b][t][h], keys[b][t][h], matrices[b][t][h]), gammas[b][t][h]
        return states.residual_step(*own, shares[b][t][h], clip, at, there[b][t][h])

    return each(v, v.shape[3], one)


def recall(ev: Evaluation, node: Node) -> Tensor:
    """What the queries read ``[B,T,H,DV]``; head h reads the states of head ``h // (H / HKV)``, all levels in order."""
    values = [ev.whole(source) for source in node.positional[1:]]
    banks = [bank for bank in values if isinstance(bank, Written)]
    if len(banks) != len(values):
        raise OracleError("recall: the oracle has no meaning for a state that was never written; write to it first")
    if node.word("read") == "all" and any(not bool(bank.active.all()) for bank in banks):
        raise OracleError("recall read = all: the parts that are not active have no weight; use read = active")
    read = {"sum": _recall_sum, "state_softmax": _recall_states, "slot_softmax": _recall_slots}[node.word("mode")]
    q = ev.tensor(node.src[0])
    q = q.repeat_interleave(max(banks[0].k.shape[2] // q.shape[2], 1), dim=2)
    return ev.number(node.expr("scale")) * read(ev, node, q, banks)


def surprise(ev: Evaluation, node: Node) -> Tensor:
    """What a token's value is beyond the prediction of the parts that it writes ``[B,T,HKV,DV]``."""
    written = ev.whole(node.src[0])
    assert isinstance(written, Written)
    active = written.active.double()
    if written.by_chunk:
        known = vector_states.recall(written, written.k, active, "before")
    else:
        known = torch.einsum("bthnde,bthd,bthn->bthe", written.before, written.k, active)
    return active.sum(-1, keepdim=True) * written.v - known


def norm2(ev: Evaluation, node: Node) -> Tensor:
    """The sum of squares of the last dim."""
    return ev.tensor(node.src[0]).square().sum(-1)


def row_lse(ev: Evaluation, node: Node) -> Tensor:
    """The logarithm of the sum of exponentials of the last dim."""
    return ev.tensor(node.src[0]).logsumexp(-1)


def mass(ev: Evaluation, node: Node) -> Tensor:
    """The decayed sum of the keys of the part that each token writes ``[B,T,HKV,D]``."""
    k, given = ev.tensor(node.src[0]), node.operands
    beta = ev.tensor(given["beta"]) if "beta" in given else torch.ones_like(k[..., 0])
    keep = torch.exp(ev.tensor(given["decay"])) if "decay" in given else torch.ones_like(k[..., 0])
    share, active, own = _own_part(ev, node, k)
    return states.masses(k * beta[..., None], keep, share, active, own, node.flag("freeze_unselected"))


def _own_part(ev: Evaluation, node: Node, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e, whether it is active, and 1 for the part of the slot that is asked for ``[B,T,H,N]``."""
    route = ev.whole(node.operands["route"]) if "route" in node.operands else None
    count = int(route.ids.max()) + 1 if isinstance(route, Chosen) and route.ids.numel() else 1
    share, active, ids = _shares(ev, node, k.shape[1], max(count, 1), k.shape[2])
    if ids is None:
        return share, active, torch.ones_like(share)
    if node["slot"] is None and ids.shape[3] != 1:
        raise OracleError("mass: a token has the mass of one part; name a slot of its list")
    slot = node["slot"] if isinstance(node["slot"], int) else 0
    return share, active, _one_hot(ids[..., slot], share.shape[-1])


def _one_hot(ids: Tensor, count: int) -> Tensor:
    """1 at each id of a new last dim, else 0; of −1 nowhere."""
    return (ids[..., None] == torch.arange(count, device=ids.device)).double()


def mixture(ev: Evaluation, node: Node) -> Tensor:
    """Weights of candidates ``[B,T,H,C]``."""
    q, *found = (ev.tensor(source) for source in node.positional)
    group = q.shape[2] // found[0].shape[2]
    z = torch.stack(found, 3).repeat_interleave(group, 2)
    length = z.norm(dim=-1, keepdim=True)
    score = ev.number(node.expr("scale")) * torch.einsum(
        "bthcd,bthd->bthc", z / torch.where(length == 0, 1.0, length), q
    )
    given = {name: ev.tensor(source).expand(score.shape) for name, source in node.operands.items()}
    score = score + given["bias"] if "bias" in given else score
    top = node["top"] if isinstance(node["top"], int) else score.shape[-1]
    weights = states.best(score, top, node.integer("first"))
    return weights * given["gain"] if "gain" in given else weights


def _matrices(node: Node, banks: Sequence[Written]) -> Tensor:
    """Every part of every bank at the moment that the node reads: ``[B,T,H,ΣN,D,DV]``."""
    found = torch.cat([bank.after if node.word("when") == "after" else bank.before for bank in banks], dim=3)
    return found.transpose(-1, -2) if node.flag("turned") else found


def _recall_sum(ev: Evaluation, node: Node, q: Tensor, banks: Sequence[Written]) -> Tensor:
    if isinstance(banks[0], Ladder):
        return banks[0].recall(q, ev.tensor(node.operands["level_gate"]))
    group = q.shape[2] // banks[0].active.shape[2]
    shares = [_read_share(node, bank) for bank in banks]
    share = torch.cat(shares, dim=3).repeat_interleave(group, dim=2) * _per_level(ev, node, "level_gate", q, banks, 1.0)
    if all(bank.by_chunk for bank in banks) and not node.flag("turned"):
        parts = share.split([bank.active.shape[3] for bank in banks], dim=3)
        read = [vector_states.recall(b, q, e, node.word("when")) for b, e in zip(banks, parts, strict=True)]
        return torch.stack(read).sum(0)
    matrices = _matrices(node, banks)
    asked, held, parts = apart(q, 3), apart(matrices, 3), apart(share, 3)
    read_parts = torch.cat([_read_parts(node, bank) for bank in banks], dim=3).tolist()

    def one(b: int, t: int, h: int) -> Tensor:
        own = h // group
        return states.recall_sum(asked[b][t][h], held[b][t][own], parts[b][t][h], read_parts[b][t][own])

    return each(q, matrices.shape[-1], one)


def _read_share(node: Node, bank: Written) -> Tensor:
    """What the answer of every part is multiplied by ``[B,T,HKV,N]``."""
    if isinstance(node["slot"], int):
        assert bank.ids is not None
        return _one_hot(bank.ids[..., node["slot"]], bank.share.shape[-1])
    return states.renormalised(bank.share, bank.active) if node.flag("renormalise") else bank.share


def _read_parts(node: Node, bank: Written) -> Tensor:
    """Which parts are read at all, bool ``[B,T,HKV,N]``: what the others hold adds nothing, finite or not."""
    return _read_share(node, bank) > 0 if isinstance(node["slot"], int) else bank.active


def _recall_states(ev: Evaluation, node: Node, q: Tensor, banks: Sequence[Written]) -> Tensor:
    matrices, group = _matrices(node, banks), q.shape[2] // banks[0].active.shape[2]
    mass = torch.cat([b.mass for b in banks], dim=3)
    bias, gain, kappa, top = _softmax_rule(ev, node, q, banks)
    sizes = [b.active.shape[3] for b in banks]
    starts, first = [sum(sizes[:n]) for n in range(len(banks))], sizes[0]
    asked, biases, gains, held, masses = (apart(x, 3) for x in (q, bias, gain, matrices, mass))

    def one(b: int, t: int, h: int) -> Tensor:
        own, rule = h // group, (biases[b][t][h], kappa[h], top, first, gains[b][t][h])
        found = [start + n for start, bank in zip(starts, banks, strict=True) for n in bank.listed(b, t, own)]
        return states.recall_softmax(asked[b][t][h], held[b][t][own], masses[b][t][own], found, *rule)

    return each(q, matrices.shape[-1], one)


def _recall_slots(ev: Evaluation, node: Node, q: Tensor, banks: Sequence[Written]) -> Tensor:
    values, keys = _matrices(node, banks[::2]), _matrices(node, banks[1::2])
    active, group = torch.cat([b.active for b in banks[::2]], dim=3), q.shape[2] // banks[0].active.shape[2]
    bias, gain, kappa, top = _softmax_rule(ev, node, q, banks[::2])
    asked, biases, gains = (apart(x, 3) for x in (q, bias, gain))
    held = [apart(x, 3) for x in (values, keys, active)]

    def one(b: int, t: int, h: int) -> Tensor:
        v, k, there = (x[b][t][h // group] for x in held)
        return states.recall_slots(asked[b][t][h], v, k, there, biases[b][t][h], kappa[h], top, gains[b][t][h])

    return each(q, values.shape[-1], one)


def _softmax_rule(
    ev: Evaluation, node: Node, q: Tensor, banks: Sequence[Written]
) -> tuple[Tensor, Tensor, Tensor, int | None]:
    """Level biases and gains ``[B,T,H,ΣN]``, kappa ``[H]`` (√D where none is given) and how many stay."""
    bias, gain = (_per_level(ev, node, name, q, banks, n) for name, n in (("level_bias", 0.0), ("level_gate", 1.0)))
    given = node.operands.get("kappa")
    kappa = q.new_full((1,), q.shape[3] ** 0.5) if given is None else ev.tensor(given)
    return bias, gain, kappa.expand(q.shape[2]), node["top"] if isinstance(node["top"], int) else None


def _per_level(ev: Evaluation, node: Node, name: str, q: Tensor, banks: Sequence[Written], default: float) -> Tensor:
    """An operand with one number per level in its last dim, repeated for the parts of each level: ``[B,T,H,ΣN]``."""
    given = node.operands.get(name)
    levels = q.new_full((len(banks),), default) if given is None else ev.tensor(given)
    sizes = torch.tensor([bank.active.shape[3] for bank in banks], device=q.device)
    return levels.expand(*q.shape[:3], len(banks)).repeat_interleave(sizes, dim=-1)


def each(like: Tensor, width: int, one: Callable[[int, int, int], Tensor]) -> Tensor:
    """Stacks one(b, t, h) ``[width]`` over batch entries, tokens and heads of a tensor ``[B,T,H,…]``."""
    found = [one(b, t, h) for b, t, h in product(*(range(n) for n in like.shape[:3]))]
    return torch.stack(found).reshape(*like.shape[:3], width) if found else like.new_zeros(*like.shape[:3], width)


STATES: dict[Op, Callable[[Evaluation, Node], Value]] = {
    Op.STATE: state,
    Op.WRITE: write,
    Op.RESIDUAL: residual,
    Op.RECALL: recall,
    Op.SURPRISE: surprise,
    Op.NORM2: norm2,
    Op.ROW_LSE: row_lse,
    Op.MASS: mass,
    Op.MIXTURE: mixture,
}
