"""The self-check of an exported file: a small case, and digests of its exact result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsec.runtime.exported.module import Exported, named
from sparsec.scalar.expr import Expr


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """A small case and its exact result, as ``sparsec.runtime.exported.host`` computes and compares it.

    Attributes:
        dims: every dim of the case.
        given: int32 inputs as nested lists; float inputs are noise of their position among the inputs.
        kinds: float inputs that may not be any number, and what they have to be, see ``host.fitting``.
        rows: the query rows whose digests were recorded.
        truths: per output, its digest by the fp64 oracle.
        bound: the largest distance that counts as right.
        packed: of packed documents, the shape of every input.
    """

    dims: Mapping[str, int]
    given: Mapping[str, object]
    rows: Sequence[int]
    truths: Sequence[Sequence[float]]
    bound: float
    packed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)


def check_text(file: Exported, check: SelfCheck) -> str:
    """The recorded results, the function ``self_check`` and the main program."""
    lines = [f"ROWS = {list(check.rows)}", "TRUTHS = ["]
    for truth in check.truths:
        lines += ["    [", *_wrapped([_number(x) for x in truth], 8), "    ],"]
    lines += ["]", "", "", "def self_check() -> float:"]
    lines += [
        '    """The largest distance from the recorded results, on a small case; raises where it is too large."""'
    ]
    lines += ["    inputs = {"]
    for seed, (name, spec) in enumerate(file.variant.inputs.items()):
        lines.append(f'        "{named(name)}": {_input(file, check, name, spec.shape, spec.dtype, seed)}.to(DEVICE),')
    outputs = "run(**inputs)" if len(file.plan.outputs) > 1 else "[run(**inputs)]"
    if "cu_seqlens" in check.packed:
        ends = f"torch.tensor({json.dumps(check.given['cu_seqlens'])}, dtype=torch.int32)"
        lines.append(f'        "cu_seqlens": {ends}.to(DEVICE),')
        outputs = f"(x[None] for x in {outputs})"
    return "\n".join([*lines, "    }", COMPARE.format(outputs=outputs, bound=check.bound)])


def _input(file: Exported, check: SelfCheck, name: str, shape: Sequence[Expr], dtype: str, seed: int) -> str:
    if name in check.given:
        return f"torch.tensor({json.dumps(check.given[name])}, dtype=torch.int32)"
    from sparsec.ir.dims import value

    sizes = tuple(check.packed[name]) if check.packed else tuple(value(d, check.dims) for d in shape)
    drawn = f"noise({sizes}, {seed})"
    if name in check.kinds:
        drawn = f'fitting({drawn}, "{check.kinds[name]}")'
    return f"{drawn}.to(torch.{file.dtype if dtype == 'float' else dtype})"


def _number(x: float) -> str:
    return f"{x:.9g}" if math.isfinite(x) else f'float("{x}")'


def _wrapped(words: Sequence[str], per_line: int) -> list[str]:
    rows = [words[k : k + per_line] for k in range(0, len(words), per_line)]
    return [f"        {', '.join(row)}," for row in rows]


COMPARE = """\
    found = [digest(x, ROWS) for x in {outputs}]
    truths = [torch.tensor(truth, dtype=torch.float64) for truth in TRUTHS]
    worst = max(distance(f, t) for f, t in zip(found, truths))
    if worst > {bound}:
        raise AssertionError(f"wrong by {{worst:.2e}}, more than {bound}")
    return worst


if __name__ == "__main__":
    try:
        print(f"right: the distance from the recorded results is {{self_check():.2e}}")
    except AssertionError as error:
        sys.exit(str(error))
"""
