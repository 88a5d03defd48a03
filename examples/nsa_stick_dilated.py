"""A layer that no preset has: NSA's selection, read with HSA's stick-breaking weights, beside a dilated window.

Run it to check it against the fp64 oracle and tune it: `python examples/nsa_stick_dilated.py`.
"""

import sparsec
from sparsec import lang


@sparsec.variant
def nsa_stick_dilated(
    q: "B TQ H D", k: "B TK HKV D", v: "B TK HKV DV", g_far: "B TQ H", g_near: "B TQ H",
    *, block: int = 64, chunks: int = 8, window: int = 64, step: int = 4,
) -> lang.Node:  # fmt: skip
    pages = lang.tokens(k, v, chunk=block)
    summaries = lang.summary(pages, size=32, stride=16)
    shares = lang.reduce(lang.score(q, summaries), over="group", pre="softmax", visible="c * 16 + 31 <= i")
    worth = lang.reduce(shares, over="overlap", size=32, stride=16, block=block)
    chosen = lang.topk(worth, k=chunks, size=block, eligible="complete_past", order="newest")
    far = lang.attend(q, pages, chosen, weights=lang.weights(worth, chosen, fn="stick"), per="chunk")
    dilated = lang.mask(pages, where=lambda i, j: (j <= i) & (i - j < window * step) & ((i - j) % step == 0))
    near = lang.attend(q, pages, dilated)
    return lang.merge(far, near, gates=[lang.map(g, fn=lang.sigmoid) for g in (g_far, g_near)], fn="gated")


def main(tokens: int = 1024, trials: int = 8, target: str = "auto") -> None:
    """Check it at a small size, tune it at another, and print what was found."""
    compiled = sparsec.compile(nsa_stick_dilated, target)
    device = compiled.target.device
    small = sparsec.inputs(nsa_stick_dilated, T=259, device=device)
    verdict = sparsec.oracle.check(
        compiled(**small), sparsec.oracle(nsa_stick_dilated, small, form="vector"), "float32"
    )
    print(verdict.sentence)
    assert verdict
    if trials:
        print(compiled.tune(sparsec.inputs(nsa_stick_dilated, T=tokens, device=device), trials=trials, seconds=60))


if __name__ == "__main__":
    main()
