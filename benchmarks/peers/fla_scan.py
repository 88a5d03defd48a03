"""fla's chunked kernels of matrix states: the public calls, on the inputs as they are."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_scan import LevelsCase, ScanCase
from sparsec.benchmarks.peers.form import Compiler, Form, Run
from sparsec.benchmarks.step import Step, leaves_of


def forms(case: ScanCase) -> list[Form]:
    """One form: fla chooses its own configurations; none for levels under a delta rule, which it does not have."""
    if isinstance(case, LevelsCase) and case.delta:
        return []
    return [Form("fla", "chunk", _chunk)]


def _kda(ops: Any, x: Inputs) -> Any:
    """Queries and keys have length 1 already; bringing them there again would cost time, and be another gradient."""
    more = {"safe_gate": True, "lower_bound": -5}
    return ops.chunk_kda(x["q"], x["k"], x["v"], x["g"], x["beta"], **more)


def _rwkv7(ops: Any, x: Inputs) -> Any:
    return ops.chunk_rwkv7(*(x[n] for n in ("q", "g", "k", "v", "a", "b")), safe_gate=True, chunk_size=64)


def _log_linear(ops: Any, x: Inputs) -> Any:
    chunked = importlib.import_module("fla.ops.log_linear_attn").chunk_log_linear_attn
    return chunked(*(x[n] for n in ("q", "k", "v", "g", "lam")), scale=x["q"].shape[-1] ** -0.5)


def _product(ops: Any, x: Inputs) -> Any:
    """A row per step, as fla takes them: a view of ours."""
    chunked, n = importlib.import_module("fla.ops.gated_delta_product").chunk_gated_delta_product, x["g"].shape[2]
    k, v, beta = (x[name].unflatten(2, (-1, n)).flatten(1, 2) for name in ("k", "v", "beta"))
    return chunked(x["q"], k, v, x["g"], beta, x["k"].shape[2] // n)


_CALLS: dict[str, Callable[[Any, Inputs], Any]] = {
    "retnet": lambda ops, x: ops.chunk_simple_gla(x["q"], x["k"], x["v"], x["g"]),
    "gla": lambda ops, x: ops.chunk_gla(x["q"], x["k"], x["v"], x["g"]),
    "deltanet": lambda ops, x: ops.chunk_delta_rule(x["q"], x["k"], x["v"], x["beta"]),
    "gdn": lambda ops, x: ops.chunk_gated_delta_rule(x["q"], x["k"], x["v"], x["g"], x["beta"]),
    "kda": _kda,
    "rwkv7": _rwkv7,
    "log_linear": _log_linear,
    "delta_product": _product,
}
"""By sparsec's preset."""


def _chunk(case: Case, inputs: Inputs, _compiler: Compiler) -> Run:
    """Gates per channel are handed over in half precision, which holds them exactly and is faster."""
    ops, call = importlib.import_module("fla.ops"), _CALLS[case.preset]
    halves = {n: x.to(case.dtype) if n == "g" and x.dim() == 4 else x for n, x in inputs.items()}
    leaves = leaves_of(case, halves)

    def run() -> Tensor:
        out: Tensor = call(ops, leaves)[0]
        return out

    return Step(case, run, leaves) if case.train else run
