"""Every op of the graph on one screen."""

from enum import Enum


class Op(Enum):
    """Listed in the order in which data flows: sources -> result; attributes. Details: ``sparsec.ir.schema``."""

    INPUT = "input"  # () -> tensor; name, shape, dtype
    MAP = "map"  # (x0, x1…) -> tensor; row function applied to each x, then a traced function of all
    PREFIX = "prefix"  # (x) -> running sum over tokens of a traced function, fp32; fn
    TOKENS = "tokens"  # (k[, v]) -> memory; chunk
    SLOTS = "slots"  # (k, v) -> memory of persistent vectors; origin
    SUMMARY = "summary"  # (memory[, given]) -> memory of window summaries; fn, size, stride, fields
    STATE = "state"  # ([initial]) -> bank of matrix states; heads, rows, cols, parts, schedule
    WRITE = "write"  # (state, k, v; beta, decay, route, weight, …) -> states after each token; rule, reads, …
    RESIDUAL = "residual"  # (v, written state, k; gamma) -> what this level leaves to the next; mode, clip
    SURPRISE = "surprise"  # (written state) -> what each token's value is beyond its key's prediction, v − Mᵀk, fp32
    NORM2 = "norm2"  # (x) -> the sum of squares of the last dim, fp32
    ROW_LSE = "row_lse"  # (x) -> the logarithm of the sum of exponentials of the last dim, fp32
    MASS = "mass"  # (k; beta, decay, route, weight) -> decayed sum of the keys of the part that a token writes, fp32
    EVICT = "evict"  # (k, v) -> after which chunk each pair is given up for a linear state, int32; keep, size
    TRANSFER = "transfer"  # (from, to; score) -> the receiving memory; trigger, by, keep
    SCORE = "score"  # (q, memory or keys; head_weights) -> scores; fn, scale, detach
    BIAS = "bias"  # (scores; captures) -> scores; a traced function
    REDUCE = "reduce"  # (scores) -> fewer scores; over, op, pre, visible
    MASK = "mask"  # (memory; captures) -> selection by predicate; where
    TOPK = "topk"  # (scores; within) -> selection; k, unit, size, scope, eligible, forced, order, …
    MEMBERS = "members"  # (topk for a set of queries) -> which units it holds, int32
    GIVEN = "given"  # (indices; counts) -> selection; unit, size, scope, order
    WEIGHTS = "weights"  # (scores, selection) -> one weight per chosen unit; fn, renormalise
    ATTEND = "attend"  # (q, memory, selection…; weights, sink, captures) -> output with log-sum-exp; per, scale, sink
    RECALL = "recall"  # (q, state…; kappa, level_bias, level_gate) -> output read from states; mode, when, read, top
    MIXTURE = "mixture"  # (q, z…; bias, gain) -> softmax over candidates by q · z/|z|, a weight each, fp32; scale, top
    LSE = "lse"  # (attend or merge) -> its log-sum-exp
    MERGE = "merge"  # (output…, gate…) -> output; fn
    AUX = "aux"  # (scores, selection; target) -> training signal, a scalar or one number per list; fn, coefficient
    VJP = "vjp"  # (primal, cotangent…; lse_grad) -> gradient of one of the primal's sources; of, capture
