"""A mask that no analysis of bounds sees through: keys whose position differs from the query's in at most two bits.

sparsec finds the tiles that have any visible pair by evaluating the predicate once, in a kernel that writes a list of
them; attention then reads the listed tiles only. Run it: `python examples/opaque_mask.py`.
"""

import sparsec
from sparsec import lang


@sparsec.variant
def butterfly(q: "B TQ H D", k: "B TK HKV D", v: "B TK HKV DV") -> lang.Node:
    def visible(i: lang.Expr, j: lang.Expr) -> lang.Expr:
        bits = i ^ j
        rest = bits & (bits - 1)  # without its lowest bit
        return (j <= i) & ((rest & (rest - 1)) == 0)

    memory = lang.tokens(k, v)
    return lang.attend(q, memory, lang.mask(memory, where=visible))


def main(tokens: int = 1024, trials: int = 8, target: str = "auto") -> None:
    """Check it at a small size, tune it at another, and print what was found."""
    compiled = sparsec.compile(butterfly, target)
    device = compiled.target.device
    small = sparsec.inputs(butterfly, T=259, device=device)
    verdict = sparsec.oracle.check(compiled(**small), sparsec.oracle(butterfly, small, form="vector"), "float32")
    print(verdict.sentence)
    assert verdict
    dims, dtype = compiled.bind(small)
    print(compiled.plan(dims, dtype).text())
    if trials:
        print(compiled.tune(sparsec.inputs(butterfly, T=tokens, device=device), trials=trials, seconds=60))


if __name__ == "__main__":
    main()
