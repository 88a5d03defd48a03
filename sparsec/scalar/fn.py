"""The scalar functions: one enum shared by traced expressions and tile programs."""

from enum import Enum


class Fn(Enum):
    """A scalar function; the value is its name in every text form.

    Comparisons and logic give booleans. ``FLOORDIV`` and ``MOD`` round down as in Python and occur only in
    expressions; ``TRUNCDIV`` and ``TRUNCMOD`` round towards zero and occur only in tile programs.
    """

    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    FLOORDIV = "floordiv"
    MOD = "mod"
    TRUNCDIV = "truncdiv"
    TRUNCMOD = "truncmod"
    NEG = "neg"
    ABS = "abs"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    EXP = "exp"
    EXP2 = "exp2"
    LOG = "log"
    LOG2 = "log2"
    SQRT = "sqrt"
    RSQRT = "rsqrt"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    LT = "lt"
    LE = "le"
    EQ = "eq"
    NE = "ne"
    AND = "and"
    OR = "or"
    NOT = "not"
    WHERE = "where"  # (condition, then, otherwise)
    XOR = "xor"
    SHL = "shl"
    SHR = "shr"  # arithmetic on signed integers
    RANK = "rank"  # (score f32, id i32) -> i64 key, larger first: forced, score, lower id; see tile.language
    RANK_ID = "rank_id"  # key -> id, -1 for the empty key
    RANK_SCORE = "rank_score"  # key -> score


ARITY: dict[Fn, int] = {
    **dict.fromkeys(Fn, 2),
    **dict.fromkeys(
        (Fn.NEG, Fn.ABS, Fn.EXP, Fn.EXP2, Fn.LOG, Fn.LOG2, Fn.SQRT, Fn.RSQRT, Fn.TANH, Fn.SIGMOID, Fn.NOT), 1
    ),
    **dict.fromkeys((Fn.RANK_ID, Fn.RANK_SCORE), 1),
    Fn.WHERE: 3,
}

COMPARISONS = frozenset({Fn.LT, Fn.LE, Fn.EQ, Fn.NE})
LOGIC = frozenset({Fn.AND, Fn.OR, Fn.NOT})
