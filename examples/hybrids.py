"""States beside attention in one declaration: merged by gates, by sum, by one normaliser, or one storing what is left.

Run it to check each of them, and its gradients, against the fp64 oracle: `python examples/hybrids.py`.
"""

import torch

import sparsec
from sparsec import lang

CHUNK = 16
KEYS = "B T HKV D"


def written(k: lang.Node, v: lang.Node, g: lang.Node, beta: lang.Node, bank: lang.Node | None = None) -> lang.Node:
    """A gated delta rule's states after every token."""
    return lang.write(bank or lang.state(), k, v, rule="delta", beta=lang.map(beta, fn=lang.sigmoid), decay=g)


def near(q: lang.Node, memory: lang.Node, window: int) -> lang.Node:
    """A causal window."""
    return lang.attend(q, memory, lang.mask(memory, where=lambda i, j: (j <= i) & (i - j < window)))


def far(q: lang.Node, k: lang.Node, v: lang.Node, chunks: int) -> lang.Node:
    """Chunks by the means of their keys, weighed by breaking a stick, so that a query may also read nothing."""
    pages = lang.tokens(k, v, chunk=CHUNK)
    scores = lang.reduce(lang.score(q, lang.summary(pages, size=CHUNK, stride=CHUNK)), over="group", op="mean")
    past = {"eligible": "complete_past", "order": "newest", "selector_gradient": "through_weights"}
    chosen = lang.topk(scores, k=chunks, size=CHUNK, **past)  # type: ignore[arg-type]
    return lang.attend(q, pages, chosen, weights=lang.weights(scores, chosen, fn="stick"), per="chunk")


@sparsec.variant
def state_and_window(
    q: "B T H D", k: KEYS, v: "B T HKV DV", g: "B T HKV float32", b: "B T HKV", g_far: "B T H", g_near: "B T H"
) -> lang.Node:
    """A state remembers what a window no longer sees; a gate each."""
    key = lang.map(k, row="l2norm")
    gates = [lang.map(x, fn=lang.sigmoid) for x in (g_far, g_near)]
    state = lang.recall(q, written(key, v, g, b), scale="rsqrt(D)")
    return lang.merge(state, near(q, lang.tokens(k, v), 32), gates=gates, fn="gated")


@sparsec.variant
def state_and_chunks(q: "B T H D", k: KEYS, v: "B T HKV DV", g: "B T HKV float32", b: "B T HKV") -> lang.Node:
    """HSA with a recurrent branch: chosen chunks beside a gated delta rule, summed."""
    state = lang.recall(q, written(lang.map(k, row="l2norm"), v, g, b), scale="rsqrt(D)")
    return lang.merge(state, far(q, k, v, 3), fn="sum")


@sparsec.variant
def residual_chunks(q: "B T H D", k: KEYS, v: "B T HKV DV", g: "B T HKV float32", b: "B T HKV") -> lang.Node:
    """Residual HSA: chunks hold what the state could not predict, so that both together recall the values."""
    key = lang.map(k, row="l2norm")
    state = written(key, v, g, b)
    return lang.merge(lang.recall(q, state), far(q, k, lang.residual(v, state, key, mode="pre"), 3), fn="sum")


@sparsec.variant
def parts_and_window(
    q: "B T H D", k: KEYS, v: "B T HKV DV", g: "B T HKV float32", b: "B T HKV", x: "B T 1 DX", w: "4 1 DX", mix: "B T H"
) -> lang.Node:
    """SSE-H inside a layer: parts of a bank that a router chooses, beside a window, mixed convexly."""
    scores = lang.score(x, w, fn="router", scale=1.0)
    how = {"unit": "part", "scope": "token", "selector_gradient": "through_weights"}
    chosen = lang.topk(scores, k=1, **how)  # type: ignore[arg-type]
    e, beta = lang.weights(scores, chosen, renormalise=False), lang.map(b, fn=lang.sigmoid)
    key, bank = lang.map(k, row="l2norm"), lang.state(parts=4)
    bank = lang.write(bank, key, v, rule="delta", beta=beta, decay=g, route=chosen, weight=e)
    read = lang.recall(q, bank, renormalise=False, scale="rsqrt(D)")
    gates = [lang.map(mix, fn=lang.sigmoid)]
    return lang.merge(read, near(q, lang.tokens(k, v), 32), gates=gates, fn="convex")


@sparsec.variant
def one_normaliser(q: "B T H D", k: KEYS, v: "B T HKV DV", g: "B T HKV float32", one: "B T HKV 1") -> lang.Node:
    """A window and a linear state under one normaliser, as in LoLCATs; `one` counts tokens."""
    phi_q, phi_k = (lang.map(x, row="softmax") for x in (q, k))
    sums, counts = (lang.write(lang.state(cols=n), phi_k, x, decay=g) for n, x in (("DV", v), ("1", one)))
    window = near(q, lang.tokens(k, v), 32)
    top = "maximum(x1, 0.0)"
    share = f"(exp(x1 - {top}) * x0 + exp(-{top}) * x2) / (exp(x1 - {top}) + exp(-{top}) * x3)"
    return lang.map(window, lang.lse(window), *(lang.recall(phi_q, s) for s in (sums, counts)), fn=share, align="heads")


@sparsec.variant
def slots_and_levels(
    q: "B T H D", k: KEYS, v: "B T HKV DV", g: "B T HKV float32", b: "B T HKV", c: "B T HKV",
    m: "1 HKV D DV float32", ks: "8 HKV D", vs: "8 HKV DV", gate: "B T H",
) -> lang.Node:  # fmt: skip
    """Residual levels whose first begins at learned contents, beside persistent vectors that are always read."""
    key = lang.map(k, row="l2norm")
    first = written(key, v, g, b, lang.state(m))
    left = lang.residual(v, first, key, clip=1.0, gamma=lang.map(c, fn=lang.sigmoid))
    levels = lang.recall(q, first, written(key, left, g, b), mode="state_softmax")
    gates = [lang.map(gate, fn=lang.sigmoid)]
    return lang.merge(levels, lang.attend(q, lang.slots(ks, vs)), gates=gates, fn="convex")


@sparsec.variant
def stick_blocks(q: "B T H D", k: KEYS, v: "B T HKV DV", r: "B T HKV DI", own: "B T 1 DI") -> lang.Node:
    """An indexer of blocks that the layer's own loss trains: each block is read apart, weighed by breaking a stick."""
    pages = lang.tokens(k, v, chunk=CHUNK)
    marks = lang.summary(lang.tokens(own, chunk=CHUNK), size=CHUNK, stride=CHUNK)
    scores = lang.score(r, marks)
    past = {"eligible": "complete_past", "order": "newest", "selector_gradient": "through_weights"}
    chosen = lang.topk(scores, k=3, size=CHUNK, **past)  # type: ignore[arg-type]
    read = lang.attend(q, pages, chosen, weights=lang.weights(scores, chosen, fn="stick"), per="chunk")
    last = lang.attend(q, pages, lang.mask(pages, where=lambda i, j: (j <= i) & (j // CHUNK == i // CHUNK)))
    return lang.merge(read, last, fn="sum")


HYBRIDS = (
    state_and_window, state_and_chunks, residual_chunks, parts_and_window, one_normaliser, slots_and_levels,
    stick_blocks,
)  # fmt: skip


def main(trials: int = 0, target: str = "auto") -> None:
    """Check each at a small size and, where asked to, tune it."""
    for variant in HYBRIDS:
        compiled = sparsec.compile(variant, target)
        small = drawn(variant, compiled.target.device)
        found, truth = compiled(**small), sparsec.oracle(variant, small, form="vector")
        assert isinstance(found, torch.Tensor) and isinstance(truth, torch.Tensor)
        verdict = sparsec.oracle.check(found, truth, "float32")
        print(f"{variant.name}: {verdict.sentence}")
        assert verdict
        if trials:
            print(compiled.tune(small, trials=trials, seconds=60))


def drawn(variant: sparsec.Variant, device: str = "cpu", tokens: int = 70) -> dict[str, torch.Tensor]:
    """Inputs of a small size; every token counts once."""
    names = {str(dim) for spec in variant.inputs.values() for dim in spec.shape}
    sizes = {"B": 1, "T": tokens, "H": 2, "HKV": 1, "D": 16, "DV": 16, "DX": 4, "DI": 8}
    x = sparsec.inputs(variant, device=device, **{n: size for n, size in sizes.items() if n in names})
    return {n: torch.ones_like(y) if n == "one" else y for n, y in x.items()}


if __name__ == "__main__":
    main()
