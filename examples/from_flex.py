"""From FlexAttention: the functions that `flex_attention` takes become a declaration, and checked and tuned kernels.

Run it: `python examples/from_flex.py`.
"""

import torch
from torch import Tensor

import sparsec

HEADS = 4
slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)])


def alibi(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """A score_mod with a captured tensor: a penalty by distance, steeper or flatter by head."""
    return score - slopes[h] * (q_idx - kv_idx)


def near_or_first(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """A mask_mod: a causal window, and the first 16 tokens."""
    return (kv_idx <= q_idx) & ((q_idx - kv_idx < 128) | (kv_idx < 16))


alibi_window = sparsec.from_flex(alibi, near_or_first, name="alibi_window")


def main(tokens: int = 1024, trials: int = 8, target: str = "auto") -> None:
    """Show it, check it at a small size, tune it at another, and print what was found."""
    print(alibi_window.text())
    compiled = sparsec.compile(alibi_window, target)
    device = compiled.target.device

    def inputs(length: int) -> dict[str, Tensor]:
        return sparsec.inputs(alibi_window, T=length, H=HEADS, device=device) | {"slopes": slopes.to(device)}

    small = inputs(259)
    verdict = sparsec.oracle.check(compiled(**small), sparsec.oracle(alibi_window, small, form="vector"), "float32")
    print(verdict.sentence)
    assert verdict
    if trials:
        print(compiled.tune(inputs(tokens), trials=trials, seconds=60))


if __name__ == "__main__":
    main()
