"""Retrieval through three levels: sections of 256 tokens, pages of 64 in the best sections, tokens in the best pages.

Run it to check it against the fp64 oracle and tune it: `python examples/three_levels.py`.
"""

import sparsec
from sparsec import lang


@sparsec.variant
def three_levels(
    q: "B TQ H D", k: "B TK HKV D", v: "B TK HKV DV",
    *, page: int = 64, pages: int = 4, fanout: int = 4, sections: int = 2,
) -> lang.Node:  # fmt: skip
    memory, section = lang.tokens(k, v, chunk=page), page * fanout
    means = [lang.score(q, lang.summary(memory, size=size, stride=size)) for size in (section, page)]
    coarse, fine = (lang.reduce(scores, over="group", op="mean") for scores in means)
    above = lang.topk(coarse, k=sections + 1, size=section, scope="kv_head", eligible="started",
                      forced=lambda i, c: c == i // section)  # fmt: skip
    chosen = lang.topk(fine, within=above, fanout=fanout, k=pages, size=page, scope="kv_head", order="newest",
                       eligible="complete_past", selector_gradient="through_weights")  # fmt: skip
    far = lang.attend(q, memory, chosen, weights=lang.weights(fine, chosen, fn="stick"), per="chunk")
    near = lang.attend(q, memory, lang.mask(memory, where=lambda i, j: (j <= i) & (i - j < 2 * page)))
    return lang.merge(far, near, fn="sum")


def main(tokens: int = 2048, trials: int = 8, target: str = "auto") -> None:
    """Check it at a small size, tune it at another, and print what was found."""
    compiled = sparsec.compile(three_levels, target)
    device = compiled.target.device
    small = sparsec.inputs(three_levels, T=999, device=device)
    verdict = sparsec.oracle.check(compiled(**small), sparsec.oracle(three_levels, small, form="vector"), "float32")
    print(verdict.sentence)
    assert verdict
    if trials:
        print(compiled.tune(sparsec.inputs(three_levels, T=tokens, device=device), trials=trials, seconds=60))


if __name__ == "__main__":
    main()
