"""A language model of any preset in a page: trained on a text, saved, loaded, and asked to go on.

`python examples/lm.py --layer GatedDeltaNet` reads this very file; `--text FILE` another one. Layers are named as in
`sparsec.nn`; `--layer hsa,gdn` alternates presets by their own names.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from sparsec import nn

FAMILIES = {"gdn": nn.GatedDeltaNet, "kda": nn.KDA, "gla": nn.GLA, "mamba2": nn.Mamba2, "rwkv7": nn.RWKV7,
            "retnet": nn.RetNet, "hgrn2": nn.HGRN2, "deltanet": nn.DeltaNet, "sse": nn.SSE, "rsa": nn.RSA,
            "hsa": nn.HSA, "full": nn.Attention}  # fmt: skip


def build(words: str, dim: int, depth: int, head: int) -> nn.LanguageModel:
    """A model over bytes whose layers are named in turn."""
    names = [FAMILIES.get(word) or getattr(nn, word) for word in words.split(",")]
    layers = [names[n % len(names)](dim, dim // head, head_dim=head) for n in range(depth)]
    return nn.LanguageModel(256, dim, layers)


def main(words: list[str] | None = None) -> float:
    """Train, save and load, continue; the last loss in nats per byte."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", default="gdn")
    parser.add_argument("--text", type=Path, default=Path(__file__))
    for name, default in {
        "dim": 128,
        "depth": 2,
        "head": 64,
        "length": 128,
        "batch": 8,
        "steps": 100,
        "new": 60,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = torch.tensor(list(a.text.read_bytes()), device=device)
    model = build(a.layer, a.dim, a.depth, a.head).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(a.steps):
        starts = torch.randint(0, len(text) - a.length, (a.batch, 1), device=device)
        ids = text[starts + torch.arange(a.length + 1, device=device)[: len(text)]]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: {loss.item():.2f} nats per byte")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), f"{folder}/model.pt")
        again = build(a.layer, a.dim, a.depth, a.head).to(device)
        again.load_state_dict(torch.load(f"{folder}/model.pt"))
    print(bytes(again.generate(text[None, :32], a.new)[0].tolist()).decode(errors="replace"))
    return loss.item()


if __name__ == "__main__":
    main()
