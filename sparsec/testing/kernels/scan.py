"""Small scans with drawn inputs, and what they give token by token in fp64: the truth of their chunked lowerings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsec.plan.states.scan_specs import Operand, Read, Scan, ScanGrad, Writes


@dataclass(frozen=True, slots=True)
class Setting:
    """One scan and its sizes.

    Attributes:
        gates: how log-decays are drawn: "mild", "strong" with 0.15 as a usual gate, or "hard" with gates of exactly 0
            and 1 among them.
        erase: whether vectors a and b say what is erased.
        reads: which state the rule reads before it writes.
        surprise: whether what a delta rule writes is an output "u" too; values are fp32 then.
        sharers: states that share a key, and as many outputs a query.
    """

    rule: str = "additive"
    decay: str = "none"
    beta: bool = False
    initial: bool = False
    final: bool = False
    when: str = "after"
    batch: int = 1
    length: int = 37
    heads: int = 2
    state_heads: int = 1
    rows: int = 16
    cols: int = 16
    dtype: str = "float32"
    gates: str = "mild"
    scale: float = 0.25
    erase: bool = False
    reads: str = "decayed"
    surprise: bool = False
    sharers: int = 1

    @property
    def values(self) -> str:
        """The dtype of v."""
        return "float32" if self.surprise else self.dtype

    @property
    def params(self) -> dict[str, int]:
        """Launch parameters."""
        return {"B": self.batch, "N": self.length}

    def scan(self) -> Scan:
        """Its spec."""
        writes = Writes(
            Operand("k", self.dtype), Operand("v", self.values), self.state_heads, self.rows, self.cols, self.rule,
            decay_kind=self.decay, beta=Operand("beta", self.dtype) if self.beta else None,
            decay=None if self.decay == "none" else Operand("g", "float32"), initial="h0" if self.initial else None,
            reads=self.reads, erase=(Operand("a", self.dtype), Operand("b", self.dtype)) if self.erase else None,
            key_heads=self.state_heads // self.sharers,
        )  # fmt: skip
        asking = self.heads // self.sharers
        read = Read(Operand("q", self.dtype), Operand("o", self.dtype), self.heads, self.scale, self.when, asking)
        surprise = Operand("u", "float32") if self.surprise else None
        return Scan("scan", writes, (read,), self.dtype, "ht" if self.final else None, surprise)

    def draw(self, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
        """Inputs, and cotangents "do" and "dht"; keys of delta rules have length 1."""
        random = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device)

        lead, dtype = (self.batch, self.length), getattr(torch, self.dtype)
        states = (self.batch, 1, self.state_heads, self.rows, self.cols)
        keys = normal(*lead, self.state_heads // self.sharers, self.rows)
        keys = torch.nn.functional.normalize(keys, dim=-1) if self.rule == "delta" else keys
        found = {"q": normal(*lead, self.heads // self.sharers, self.rows), "k": keys}
        found |= {"v": normal(*lead, self.state_heads, self.cols), "do": normal(*lead, self.heads, self.cols)}
        found = {name: x if name == "v" and self.surprise else x.to(dtype) for name, x in found.items()}
        found |= {"du": normal(*lead, self.state_heads, self.cols)} if self.surprise else {}
        if self.beta:
            found["beta"] = torch.sigmoid(normal(*lead, self.state_heads)).to(dtype)
        if self.decay != "none":
            found["g"] = self._gates(normal(*lead, self.state_heads, *([self.rows] * (self.decay == "key"))))
        if self.erase:
            found |= {n: (normal(*lead, self.state_heads, self.rows) * self.rows**-0.5).to(dtype) for n in ("a", "b")}
        found |= {"h0": normal(*states)} if self.initial else {}
        return found | ({"dht": normal(*states)} if self.final else {})

    def _gates(self, drawn: Tensor) -> Tensor:
        mild = torch.nn.functional.logsigmoid(drawn + (-1.7 if self.gates == "strong" else 3))
        if self.gates != "hard":
            return mild
        hard = torch.where(drawn > 1.0, 0.0, mild)
        return torch.where(drawn < -1.0, -torch.inf, hard)

    def outputs(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """Empty outputs, full of NaN."""
        out = torch.full((self.batch, self.length, self.heads, self.cols), torch.nan, dtype=dtype, device=device)
        states = (self.batch, 1, self.state_heads, self.rows, self.cols)
        last = {"ht": torch.full(states, torch.nan, device=device)} if self.final else {}
        written = torch.full((self.batch, self.length, self.state_heads, self.cols), torch.nan, device=device)
        return {"o": out} | last | ({"u": written} if self.surprise else {})

    def grad(self) -> ScanGrad:
        """The spec of all its gradients."""
        beta = Operand("dbeta", self.dtype) if self.beta else None
        decay = None if self.decay == "none" else Operand("dg", "float32")
        return ScanGrad(
            "grad", self.scan(), (Operand("do", self.dtype),), "dht" if self.final else None,
            (Operand("dq", self.dtype),), Operand("dk", self.dtype), Operand("dv", self.values), beta, decay,
            grad_erase=(Operand("da", self.dtype), Operand("db", self.dtype)) if self.erase else (None, None),
            grad_initial="dh0" if self.initial else None,
            surprise=Operand("du", "float32") if self.surprise else None,
        )  # fmt: skip

    def gradients(self, device: str = "cpu") -> dict[str, Tensor]:
        """Empty gradients, full of NaN."""
        x = self.draw(0, device)
        names = ("q", "k", "v", "beta", "g", "a", "b", "h0")
        return {f"d{n}": torch.full_like(x[n], torch.nan) for n in names if n in x}

    def exact(self) -> Setting:
        """The same in fp32."""
        return replace(self, dtype="float32")


def truth(s: Setting, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs "o" and "ht" in fp64, and the gradients "dq", "dk", … of <o, do> + <ht, dht> + <u, du>."""
    leaves = {n: t.double().requires_grad_() for n, t in x.items() if n not in ("do", "dht", "du")}
    out, last, written = _scan(s, leaves)
    loss = (out * x["do"].double()).sum()
    loss = loss + (last * x["dht"].double()).sum() if s.final else loss
    loss = loss + (written * x["du"].double()).sum() if s.surprise else loss
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {"o": out.detach(), "ht": last.detach(), "u": written.detach()}
    return found | {f"d{n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}


def _scan(s: Setting, x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last states, and what is written without beta."""
    group, state = s.heads // s.state_heads, x.get("h0")
    x = x | {name: x[name].repeat_interleave(s.sharers, 2) for name in "qk"}
    if state is not None:
        state = state[:, 0]
    else:
        state = torch.zeros(s.batch, s.state_heads, s.rows, s.cols, dtype=torch.float64, device=x["q"].device)
    outputs, surprises = [], []
    for t in range(s.length):
        k, v, undecayed = x["k"][:, t], x["v"][:, t], state
        if s.decay != "none":
            gate = x["g"][:, t].exp()
            state = state * (gate[..., None, None] if s.decay == "scalar" else gate[..., None])
        before = state
        asked = undecayed if s.reads == "undecayed" else state
        replaced = s.rule == "delta" and not s.erase
        value = v - torch.einsum("bhde,bhd->bhe", asked, k) if replaced else v
        surprises.append(value)
        value = value * x["beta"][:, t][..., None] if s.beta else value
        state = state + k[..., :, None] * value[..., None, :]
        if s.erase:
            answer = torch.einsum("bhde,bhd->bhe", asked, x["a"][:, t])
            state = state + x["b"][:, t][..., :, None] * answer[..., None, :]
        seen = (state if s.when == "after" else before).repeat_interleave(group, 1)
        outputs.append(s.scale * torch.einsum("bhde,bhd->bhe", seen, x["q"][:, t]))
    return torch.stack(outputs, 1), state[:, None], torch.stack(surprises, 1)
