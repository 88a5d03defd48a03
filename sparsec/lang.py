"""The words of a declaration: constructors of nodes, and the scalar functions of traced predicates and gates.

``from sparsec import lang``, then ``lang.attend(q, lang.tokens(k, v), …)``.
"""

from sparsec.ir.build import (
    attend,
    bias,
    given,
    input,
    lse,
    map,
    mask,
    merge,
    reduce,
    score,
    slots,
    summary,
    tokens,
    topk,
    weights,
)
from sparsec.ir.build_state import (
    aux,
    mass,
    mixture,
    norm2,
    recall,
    residual,
    row_lse,
    state,
    surprise,
    transfer,
    write,
)
from sparsec.ir.node import Node
from sparsec.ir.predicates import causal, complete, complete_past, started
from sparsec.scalar.composed import log1p, log_sigmoid, relu, silu, softplus
from sparsec.scalar.expr import Expr
from sparsec.scalar.expr import var as dim
from sparsec.scalar.functions import absolute, exp, exp2, log, log2, maximum, minimum, rsqrt, sigmoid, sqrt, tanh, where

__all__ = [
    "Expr",
    "Node",
    "absolute",
    "attend",
    "aux",
    "bias",
    "causal",
    "complete",
    "complete_past",
    "dim",
    "exp",
    "exp2",
    "given",
    "input",
    "log",
    "log1p",
    "log2",
    "log_sigmoid",
    "lse",
    "map",
    "mask",
    "mass",
    "maximum",
    "merge",
    "minimum",
    "mixture",
    "norm2",
    "recall",
    "reduce",
    "relu",
    "residual",
    "row_lse",
    "rsqrt",
    "score",
    "sigmoid",
    "silu",
    "slots",
    "softplus",
    "sqrt",
    "started",
    "state",
    "summary",
    "surprise",
    "tanh",
    "tokens",
    "topk",
    "transfer",
    "weights",
    "where",
    "write",
]
