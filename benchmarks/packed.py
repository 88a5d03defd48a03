"""Packed documents beside one sequence: `python -m sparsec.benchmarks.packed CASE … --lengths 1024x16`.

Forward, and forward with backward, of a case of one sequence whose tokens are cut into documents; first outputs and
gradients are compared with those of each document by itself. `--small` does it at a few tokens on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.gradients import GRADIENT_SLACK, GRADIENT_SLACK_ELSE
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.hardware import Record, hardware
from sparsec.benchmarks.laps import Run
from sparsec.benchmarks.own import compiled_for, given_to
from sparsec.benchmarks.registry import cases_named
from sparsec.benchmarks.row import read_json, write_json
from sparsec.benchmarks.timing import clock_for
from sparsec.benchmarks.verdict import LIMITS
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.packed.batch import unbatched


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of packed documents, and of one sequence of as many tokens; forward, and with its backward."""

    case: str
    lengths: str
    forward_ms: float
    both_ms: float
    one_forward_ms: float
    one_both_ms: float
    error: float
    gradient_errors: Mapping[str, float]
    hardware: Record


def lengths_of(text: str) -> list[int]:
    """``1024x16,100`` -> sixteen documents of 1024 tokens, then one of 100."""
    parts = [part.split("x") for part in text.split(",")]
    return [int(length) for length, *times in parts for _ in range(int(times[0]) if times else 1)]


@dataclass(frozen=True, slots=True)
class Documents:
    """A case's inputs as one sequence, cut into documents."""

    compiled: Compiled
    inputs: Inputs
    lengths: Sequence[int]

    @property
    def ends(self) -> list[int]:
        """0, then the end of every document."""
        return [0, *accumulate(self.lengths)]

    def packed(self, leaves: Inputs) -> Tensor:
        """The output ``[tokens,heads,dim]`` of one call for all documents."""
        layouts = self.compiled.packed.layouts
        rows = {n: unbatched(leaves[n], at) for n, at in zip(self.compiled.names, layouts, strict=True)}
        ends = torch.tensor(self.ends, dtype=torch.int32, device=next(iter(leaves.values())).device)
        return _tensor(self.compiled(cu_seqlens=ends, **rows))

    def one(self, leaves: Inputs) -> Tensor:
        """The output of the whole as one sequence."""
        return _tensor(self.compiled(None, **leaves))

    def alone(self, leaves: Inputs) -> Tensor:
        """What ``packed`` shall give, document by document."""
        axes = dict(zip(self.compiled.names, (at and at.along for at in self.compiled.packed.layouts), strict=True))
        found = []
        for start, end in pairwise(self.ends):
            part = {n: x if axes[n] is None else x[:, start:end] for n, x in leaves.items()}
            found.append(_tensor(self.compiled(None, **part))[0])
        return torch.cat(found)

    def leaves(self, learned: Sequence[str]) -> Inputs:
        """Copies that can be differentiated by."""
        return {n: x.detach().clone().requires_grad_(n in learned) for n, x in self.inputs.items()}


def _tensor(out: object) -> Tensor:
    assert isinstance(out, Tensor), "cases have one output"
    return out


def errors(docs: Documents, learned: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Of the packed call to each document by itself: root-mean-square, of the output and of gradients."""
    found = []
    for call in (docs.packed, docs.alone):
        leaves = docs.leaves(learned)
        out = call(leaves)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
        found.append([out.detach(), *torch.autograd.grad(out, [leaves[n] for n in learned], grad)])
    first, *others = [_error(a, b) for a, b in zip(*found, strict=True)]
    return first, dict(zip(learned, others, strict=True))


def _error(found: Tensor, right: Tensor) -> float:
    off = (found.double() - right.double()).square().mean() / right.double().square().mean()
    return float(off.sqrt())


def wrong(case: Case, error: float, gradients: Mapping[str, float]) -> list[str]:
    """What is further off than a case's check allows."""
    limit = LIMITS[case.dtype]
    limits = {n: limit * GRADIENT_SLACK.get(n, GRADIENT_SLACK_ELSE) for n in gradients} | {"output": limit}
    return [f"{n}: {e:.1e} of {limits[n]:.1e}" for n, e in {"output": error, **gradients}.items() if not e <= limits[n]]


def row(case: Case, text: str) -> Row:
    """Check the packed call, then time it and one sequence. Raises ValueError where it is wrong."""
    lengths = lengths_of(text)
    case = replace(case, B=1, T=sum(lengths))
    compiled = compiled_for(case)
    docs = Documents(compiled, given_to(case.inputs()), lengths)
    error, gradients = errors(docs, case.learned)
    off = wrong(case, error, gradients)
    if off:
        raise ValueError("; ".join(off))
    clock = clock_for(case.device)
    runs = [*_runs(docs, docs.packed, case.learned), *_runs(docs, docs.one, case.learned)]
    forward, both, one_forward, one_both = (clock(run, 25, 100) for run in runs)
    return Row(case.name, text, forward, both, one_forward, one_both, error, gradients, hardware(case.device))


def _runs(docs: Documents, call: Callable[[Inputs], Tensor], learned: Sequence[str]) -> list[Run]:
    leaves = docs.leaves(learned)
    grad = torch.randn_like(call(docs.inputs))
    return [lambda: call(docs.inputs), lambda: torch.autograd.grad(call(leaves), [leaves[n] for n in learned], grad)]


def text_of(found: Row) -> str:
    """A line of the table."""
    both = f"forward {found.forward_ms:.3f} ms (one sequence {found.one_forward_ms:.3f})"
    more = f"and backward {found.both_ms:.3f} ({found.one_both_ms:.3f})"
    worst = max([found.error, *found.gradient_errors.values()])
    return f"{found.case} {found.lengths}: {both}, {more}; differs by {worst:.1e} at most"


def main(words: Sequence[str]) -> int:
    """Print a line per case and list of lengths; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["gdn", "gla", "kda"], metavar="CASE")
    parser.add_argument("--lengths", nargs="+", default=["1024x16", "16384", "15000,1384"], metavar="LENGTHS")
    parser.add_argument("--small", action="store_true", help="on the CPU: give lengths of a few tokens")
    parser.add_argument("--out", type=Path, help="rows as JSON; those that it has of this GPU are not taken again")
    asked = parser.parse_args(words)
    rows, failed = read_json(asked.out) if asked.out else [], False
    done = {(r["case"], r["lengths"], r["hardware"].get("gpu")) for r in rows}
    for case in map(small if asked.small else lambda case: case, cases_named(asked.cases)):
        here = hardware(case.device).get("gpu")
        for lengths in (text for text in asked.lengths if (case.name, text, here) not in done):
            try:
                found = row(case, lengths)
            except Exception as error:  # the rows after it are worth having
                print(f"{case.name} {lengths}: {type(error).__name__}: {error}"[:400], flush=True)
                failed = True
                continue
            print(text_of(found), flush=True)
            rows.append(asdict(found))
            if asked.out:
                write_json(rows, asked.out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
