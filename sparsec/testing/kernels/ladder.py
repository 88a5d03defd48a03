"""Small ladders with drawn inputs, and what the oracle makes of them: the truth of their lowerings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.oracle import oracle
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan_specs import Operand, Read, Writes


@dataclass(frozen=True, slots=True)
class Setting:
    """One ladder and its sizes.

    Attributes:
        hard: gates of exactly 0 and 1 are among the log-decays.
    """

    rule: str
    decays: bool = True
    length: int = 37
    levels: int = 8
    rows: int = 16
    cols: int = 16
    batch: int = 1
    heads: int = 1
    dtype: str = "float32"
    hard: bool = False

    @property
    def params(self) -> dict[str, int]:
        """Launch parameters."""
        return {"B": self.batch, "N": self.length}

    @property
    def gradients(self) -> tuple[str, ...]:
        """Names of all gradients."""
        return ("dq", "dk", "dv", "dlam", *["dbeta"] * (self.rule == "delta"), *["dg"] * self.decays)

    def ladder(self) -> Ladder:
        """Its spec."""
        q, k, v, o = (Operand(name, self.dtype) for name in "qkvo")
        writes = Writes(
            k,
            v,
            self.heads,
            self.rows,
            self.cols,
            self.rule,
            decay_kind="scalar" if self.decays else "none",
            beta=Operand("beta", self.dtype) if self.rule == "delta" else None,
            decay=Operand("g", "float32") if self.decays else None,
        )
        gate = Operand("lam", "float32")
        return Ladder("ladder", writes, Read(q, o, self.heads, self.rows**-0.5), gate, self.levels, self.dtype)

    def grad(self) -> LadderGrad:
        """The spec of all its gradients."""
        made = {n: Operand(n, "float32" if n in ("dg", "dlam") else self.dtype) for n in (*self.gradients, "do")}
        return LadderGrad(
            "grad",
            self.ladder(),
            made["do"],
            made["dq"],
            made["dk"],
            made["dv"],
            made.get("dbeta"),
            made.get("dg"),
            made["dlam"],
        )

    def draw(self) -> dict[str, Tensor]:
        """Inputs, and the cotangent "do"; keys have length 1."""
        random, dtype = torch.Generator().manual_seed(0), getattr(torch, self.dtype)
        lead = (self.batch, self.length, self.heads)
        drawn = {n: torch.randn(*lead, dim, generator=random) for n, dim in self._dims().items()}
        drawn["k"] = torch.nn.functional.normalize(drawn["k"], dim=-1)
        found = {n: x.to(dtype) for n, x in drawn.items()}
        found["lam"] = torch.rand(*lead, self.levels, generator=random)
        gate = torch.randn(lead, generator=random)
        found["g"] = torch.nn.functional.logsigmoid(gate + 3) if self.decays else torch.zeros(lead)
        if self.hard:
            found["g"] = torch.where(gate < -1.2, -torch.inf, torch.where(gate > 1.2, 0.0, found["g"]))
        if self.rule == "delta":
            found["beta"] = torch.rand(lead, generator=random).to(dtype)
        return found

    def _dims(self) -> dict[str, int]:
        return {"q": self.rows, "k": self.rows, "v": self.cols, "do": self.cols}

    def truth(self) -> dict[str, Tensor]:
        """The output "o" in fp64, and the gradients "dq", "dk", … of <o, do>."""
        return _truth(self)


@cache
def _truth(s: Setting) -> dict[str, Tensor]:
    x = s.draw()
    do = x.pop("do").double()
    leaves = {n: y.double().requires_grad_() for n, y in x.items()}
    made = preset("log_linear", rule=s.rule, levels=s.levels, raw=True)
    out = oracle(made, leaves, form="vector")
    assert isinstance(out, Tensor)
    grads = torch.autograd.grad((out * do).sum(), list(leaves.values()))
    return {"o": out.detach()} | {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}
