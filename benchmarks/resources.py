"""What a compiler says of each program of a case, without a GPU: `python -m sparsec.benchmarks.resources CASE …`.

Registers, spills and shared memory of what a call of the case launches under its schedules; of a case that trains,
backward too. `--spilled` prints only programs that spill. `--out` keeps the cases that are done, and goes on from them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sparsec.benchmarks import crossover
from sparsec.benchmarks.cases import Case, Inputs
from sparsec.benchmarks.cases_scan import LevelsCase
from sparsec.benchmarks.own import compiled_for, given_to
from sparsec.benchmarks.registry import cases_named, cases_on
from sparsec.benchmarks.row import read_json, write_json
from sparsec.frontends.preset import preset
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.explain import explain
from sparsec.runtime.peak import float_inputs

TOKENS = 2048
"""Of the inputs that tell a case's dims: what is compiled does not depend on lengths."""
Made = Mapping[str, Any]


def resources(case: Case, target: str) -> list[Made]:
    """Per program of a call its kernel and what it needs, or the sentence of the compiler that refused it."""
    tokens = case.T if isinstance(case, LevelsCase) else min(case.T, TOKENS)  # as many levels as the length asks for
    inputs = given_to(replace(case, device="cpu", B=1, T=tokens).inputs())
    return needs(compiled_for(case, target), inputs, case.learned if case.train else ())


def preset_resources(name: str, target: str, here: crossover.Setting = crossover.GPU) -> list[Made]:
    """The same of a preset as a crossover on a GPU runs it, forward and backward."""
    variant = preset(name, **crossover.knobs_of(name))
    inputs = crossover.inputs_of(variant, replace(here, device="cpu"), here.lengths[0])
    return needs(compile(variant, target), inputs, float_inputs(variant))


def needs(compiled: Compiled, inputs: Inputs, gradients: Sequence[str]) -> list[Made]:
    """What each program of a call with such inputs needs."""
    dims, dtype = compiled.bind(inputs)
    found = explain(compiled, dims, dtype, resources=True, gradients=gradients)
    return [
        {"kernel": kernel.name, "program": name} | (own if isinstance(own, dict) else {"refused": str(own)})
        for kernel in found.kernels
        for name, own in kernel.resources.items()
    ]


def lines(case: str, programs: Sequence[Made], spilled: bool) -> list[str]:
    """The programs of a case as text."""
    kept = [p for p in programs if p.get("spills") or "refused" in p or not spilled]
    return [
        f"{case}: {len(programs)} programs, {sum(bool(p.get('spills')) for p in programs)} spill",
        *map(_line, kept),
    ]


def _line(program: Made) -> str:
    if "refused" in program:
        return f"  {program['program']}: does not compile: {program['refused'][:200]}"
    spills = f", {program['spills']} bytes spilled" if program["spills"] else ""
    return f"  {program['program']}: {program['registers']} registers, {program['shared']} bytes shared{spills}"


def survey(
    names: Sequence[str], made: Callable[[str], list[Made]], out: Path | None, report: Callable[[Made], None], of: str
) -> list[Made]:
    """A row per name; each is written to ``out`` as soon as it is done, and taken from there if it is there.

    Args:
        of: the target, and what else programs depend on beside names: rows of something else are left as they are.
    """
    rows, asked = list[Made](read_json(out)) if out else [], list[Made]()
    for name in names:
        row = next((r for r in rows if r["case"] == name and r.get("of") == of), None)
        if row is None:
            row = {"case": name, "of": of, "programs": _programs(name, made)}
            rows.append(row)
            if out:
                write_json(rows, out)
        asked.append(row)
        report(row)
    return asked


def _programs(name: str, made: Callable[[str], list[Made]]) -> list[Made]:
    try:
        return made(name)
    except Exception as error:  # the cases after it are worth having
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return [{"kernel": "", "program": name, "refused": why}]


def main(words: Sequence[str]) -> int:
    """Print a block per case; 1 where a program does not compile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases or groups; by default all of a GPU")
    parser.add_argument("--crossover", action="store_true", help="presets as `bench --crossover` runs them on a GPU")
    parser.add_argument("--heads", default="", help="with --crossover: heads of queries and of keys, such as 16,16")
    parser.add_argument("--target", default="triton:sm_90")
    parser.add_argument("--spilled", action="store_true", help="print only the programs that spill")
    parser.add_argument("--out", type=Path, help="rows as JSON, one per line where it ends in .jsonl")
    asked = parser.parse_args(words)
    made: Callable[[str], list[Made]]
    of = asked.target
    if asked.crossover:
        names = asked.cases or crossover.default_presets()
        here = crossover.with_heads(crossover.GPU, asked.heads) if asked.heads else crossover.GPU
        made, of = partial(preset_resources, target=asked.target, here=here), f"{of}, {crossover.shape_of(here)}"
    else:
        cases = {case.name: case for case in (cases_named(asked.cases) if asked.cases else cases_on("cuda"))}
        names, made = [*cases], lambda name: resources(cases[name], asked.target)

    def report(row: Made) -> None:
        print("\n".join(lines(row["case"], row["programs"], asked.spilled)), flush=True)

    rows = survey(names, made, asked.out, report, of)
    return int(any("refused" in p for row in rows for p in row["programs"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
