"""A language model of any preset in a page: trained on a text, saved, loaded, and asked to go on.

`python examples/lm.py --layers GatedDeltaNet` reads this very file; `--text FILE` another one. Layers are named as in
`sparsec.nn` or by their preset; `--layers hsa,gdn` takes them in turn.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from sparsec import nn

FAMILIES: dict[str, Callable[..., nn.Layer]] = {
    "gdn": nn.GatedDeltaNet, "kda": nn.KDA, "gla": nn.GLA, "mamba2": nn.Mamba2, "rwkv7": nn.RWKV7,
    "retnet": nn.RetNet, "hgrn2": nn.HGRN2, "deltanet": nn.DeltaNet, "sse": partial(nn.SSE, balance=0.01),
    "rsa": nn.RSA, "hsa": nn.HSA, "full": nn.Attention,
}  # fmt: skip
OPTIONS = {"hidden_size": 128, "num_layers": 2, "head_dim": 64, "seq_len": 128, "batch_size": 8, "steps": 100,
           "max_new_tokens": 60}  # fmt: skip


def layer(word: str) -> Callable[..., nn.Layer]:
    """What makes a layer: by a preset's name, by a module's, else attention of the preset of that name."""
    return FAMILIES.get(word) or getattr(nn, word, None) or partial(nn.Attention, name=word)


def build(a: argparse.Namespace) -> nn.LanguageModel:
    """A model over bytes whose layers are named in turn."""
    makers = [layer(word) for word in a.layers.split(",")]
    heads = a.hidden_size // a.head_dim
    made = [makers[n % len(makers)](a.hidden_size, heads, head_dim=a.head_dim) for n in range(a.num_layers)]
    return nn.LanguageModel(256, a.hidden_size, made)


def train(model: nn.LanguageModel, text: torch.Tensor, a: argparse.Namespace) -> float:
    """Steps on random pieces of a text; the last loss in nats per byte."""
    device, length = text.device.type, min(a.seq_len, len(text) - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr)
    for step in range(a.steps):
        starts = torch.randint(0, len(text) - length, (a.batch_size, 1), device=device)
        ids = text[starts + torch.arange(length + 1, device=device)]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        (loss + sum(model.losses())).backward()  # a router's balance loss, where there is one
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: {loss.item():.2f} nats per byte")
    return loss.item()


def main(argv: list[str] | None = None) -> float:
    """Train, save and load, continue; the last loss in nats per byte."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="gdn")
    parser.add_argument("--text", type=Path, default=Path(__file__))
    parser.add_argument("--lr", type=float, default=3e-3)
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    a = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = torch.tensor(list(a.text.read_bytes()), device=device)
    model = build(a).to(device)
    loss = train(model, text, a)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), f"{folder}/model.pt")
        again = build(a).to(device)
        again.load_state_dict(torch.load(f"{folder}/model.pt"))
    print(bytes(again.generate(text[None, :32], a.max_new_tokens)[0].tolist()).decode(errors="replace"))
    return loss


if __name__ == "__main__":
    main()
