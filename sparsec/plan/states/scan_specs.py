"""Specs of matrix states: written token by token, read by queries, and the adjoint of both.

A state M ``[D,DV]`` per key/value head is fp32 and key-first: it answers q with Mᵀq. Decays are logarithms, at most 0.
With M' = exp(decay) M, and R what the erase term reads, M' or the undecayed M:

    additive    M <- M' + beta k vᵀ
    delta       M <- M' + beta k (v − Rᵀk)ᵀ
    erase a, b  M <- M' + b (Rᵀa)ᵀ + beta k vᵀ

(linear attention, RetNet, Mamba-2, GLA, HGRN2; DeltaNet, Gated DeltaNet, KDA; RWKV-7, GDN-2.)

A bank with a route has several such states per head. A token writes and reads a few of them, with e·beta for beta and
e·b for b; the others rest.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a write or a read takes, as it lies in memory: ``[B,N,heads]`` or ``[B,N,heads,dim]``.

    Attributes:
        unit: whether its rows are brought to length 1 as they are read: x · rsqrt(Σ x² + 1e-6).
    """

    name: str
    dtype: str
    unit: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Which parts of a bank every token writes and reads.

    Attributes:
        ids: int32 ``[B,N,lists,slots]``: a token's parts, none of them twice; -1 is none.
        parts: of the bank.
        lists: 1, which all heads share, or one per state head.
        weight: e ``[B,N,lists,slots]``, 0 where there is no part; None is 1.
        freeze: whether parts that rest keep still; else they decay with every token.
        softmax: whether e is made here as shares of a softmax: not negative, and no gradient goes on where it is 0.
    """

    ids: str
    parts: int
    slots: int
    lists: int = 1
    weight: Operand | None = None
    freeze: bool = True
    softmax: bool = False


@dataclass(frozen=True, slots=True)
class Writes:
    """How every token writes the states of its heads.

    Attributes:
        k, v: ``[B,N,HKV,D]`` and ``[B,N,HKV,DV]``.
        beta: ``[B,N,HKV]``; None is 1.
        decay: log-decays by ``decay_kind``: none, scalar ``[B,N,HKV]``, key ``[B,N,HKV,D]``, value ``[B,N,HKV,DV]``.
        erase: a and b ``[B,N,HKV,D]``, in place of −k and beta k.
        initial: fp32 ``[B,P,HKV,D,DV]``, or ``[P,HKV,D,DV]`` where ``initial_batched`` is false; None is zero. P counts
            parts.
        reads: "decayed" or "undecayed": which state the erase term reads.
        heads, rows, cols: HKV, D and DV.
        key_heads: of k, fewer where states share keys: the state of head h is written by key head
            h // (heads / key_heads); None is ``heads``.
        length: the launch parameter with N.
        route: of a bank of which every token chooses parts; None for one state per head.
        steps: n writes per token, of which the first alone fades and the last is read, or of reads before the write
            the first; k, v, beta and the erase vectors are ``[B,N,n·HKV,…]``, those of the first step first.
        split: whether chunks multiply states, and what goes into them, as sums of two half-precision numbers, and take
            gradients of outputs in fp32: masses of keys, whose gradients cancel against the keys.
    """

    k: Operand
    v: Operand
    heads: int
    rows: int
    cols: int
    rule: str = "additive"
    reads: str = "decayed"
    decay_kind: str = "none"
    beta: Operand | None = None
    decay: Operand | None = None
    erase: tuple[Operand, Operand] | None = None
    initial: str | None = None
    initial_batched: bool = True
    length: str = "N"
    key_heads: int | None = None
    route: Route | None = None
    steps: int = 1
    split: bool = False

    @property
    def half(self) -> str:
        """The dtype of operands of products: that of the keys, or of the values where keys are kept in fp32."""
        return self.v.dtype if self.k.dtype == "float32" else self.k.dtype

    @property
    def sharers(self) -> int:
        """States that share a key."""
        return self.heads // (self.key_heads or self.heads)

    @property
    def parts(self) -> int:
        """States per head."""
        return self.route.parts if self.route is not None else 1

    @property
    def slots(self) -> int:
        """Parts that a token writes and reads."""
        return self.route.slots if self.route is not None else 1


@dataclass(frozen=True, slots=True)
class Read:
    """o = scale · Mᵀq of the state after (or before) the token's own write.

    Attributes:
        q: ``[B,N,H,D]``; head h reads the state of head h // (H / HKV).
        out: ``[B,N,H,DV]`` of its own dtype.
        query_heads: of q, fewer where states share queries as they do keys; None is ``heads``.
        when: "after", or "before": decayed by the token but not yet written.
        weighed: whether what a part answers is multiplied by e.
        slot: of a token's list whose part alone answers; None is the sum over all.
        turned: o = scale · Mq: q is ``[B,N,H,DV]``, and ``out`` ``[B,N,H,D]``.
    """

    q: Operand
    out: Operand
    heads: int
    scale: float
    when: str = "after"
    query_heads: int | None = None
    weighed: bool = False
    slot: int | None = None
    turned: bool = False

    @property
    def sharers(self) -> int:
        """States that share a query."""
        return self.heads // (self.query_heads or self.heads)


@dataclass(frozen=True, slots=True)
class Scan:
    """The states after every token, of which only what is read leaves the kernel.

    Attributes:
        final: fp32 ``[B,P,HKV,D,DV]``, the states after the last token; None where nobody asks.
        surprise: ``[B,N,HKV,DV]``, what a delta rule of one part per token writes, v − M'ᵀk; None where nobody asks.
    """

    name: str
    writes: Writes
    reads: tuple[Read, ...]
    dtype: str
    final: str | None = None
    surprise: Operand | None = None


@dataclass(frozen=True, slots=True)
class ScanGrad:
    """Gradients of everything that a scan reads, of which None is not asked for.

    Attributes:
        grads: those of the outputs, one per read, with their dtypes, shaped as the outputs.
        grad_final: that of the final states, fp32 as they are; None is zero.
        grad_q: one per read.
        grad_initial: fp32 ``[B,P,HKV,D,DV]``; a ``StatesSum`` adds up B where the initial states are not batched.
        grad_weight: of a route's e, through writes and reads.
        surprise: the gradient of what a delta rule writes; None is zero.
    """

    name: str
    forward: Scan
    grads: tuple[Operand, ...]
    grad_final: str | None
    grad_q: tuple[Operand | None, ...]
    grad_k: Operand | None = None
    grad_v: Operand | None = None
    grad_beta: Operand | None = None
    grad_decay: Operand | None = None
    grad_erase: tuple[Operand | None, Operand | None] = (None, None)
    grad_initial: str | None = None
    grad_weight: Operand | None = None
    surprise: Operand | None = None


@dataclass(frozen=True, slots=True)
class StatesSum:
    """The sum of several x, fp32 ``[B,P,heads,D,DV]``: ``[P,heads,D,DV]`` over batch entries, or one per entry.

    Attributes:
        batched: whether batch entries stay apart.
    """

    name: str
    x: tuple[str, ...]
    out: str
    heads: int
    rows: int
    cols: int
    dtype: str = "float32"
    parts: int = 1
    batched: bool = False
