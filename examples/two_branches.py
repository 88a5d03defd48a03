"""Two branches under one gate: each head chooses far blocks as MoBA does, a window with sinks keeps what is near.

Run it to check it against the fp64 oracle and tune it: `python examples/two_branches.py`.
"""

import sparsec
from sparsec import lang


@sparsec.variant
def two_branches(
    q: "B TQ H D", k: "B TK HKV D", v: "B TK HKV DV", gate: "B TQ H",
    *, block: int = 64, blocks: int = 4, window: int = 128, sinks: int = 4,
) -> lang.Node:  # fmt: skip
    pages = lang.tokens(k, v, chunk=block)
    scores = lang.score(q, lang.summary(pages, size=block, stride=block))
    chosen = lang.topk(scores, k=blocks, size=block, scope="head", eligible="complete_past")
    far = lang.attend(q, pages, chosen)
    near = lang.attend(q, pages, lang.mask(pages, where=lambda i, j: (j <= i) & ((j < sinks) | (i - j < window))))
    return lang.merge(far, near, gates=[lang.map(gate, fn=lang.sigmoid)], fn="convex")


def main(tokens: int = 1024, trials: int = 8, target: str = "auto") -> None:
    """Check it at a small size, tune it at another, and print what was found."""
    compiled = sparsec.compile(two_branches, target)
    device = compiled.target.device
    small = sparsec.inputs(two_branches, T=259, device=device)
    verdict = sparsec.oracle.check(compiled(**small), sparsec.oracle(two_branches, small, form="vector"), "float32")
    print(verdict.sentence)
    assert verdict
    if trials:
        print(compiled.tune(sparsec.inputs(two_branches, T=tokens, device=device), trials=trials, seconds=60))


if __name__ == "__main__":
    main()
