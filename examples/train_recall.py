"""Do they learn? Small models on multi-query associative recall (MQAR) and passkey retrieval, data made on the fly.

`python examples/train_recall.py --task mqar` trains every model, each in a process of its own, and prints accuracy by
number of pairs; `--task passkey` by context length, up to 64 times the trained one. All models have two layers, one
width, short convolutions, the same steps (or seconds, if those end first; `--seconds 0`: never), and MLPs sized so that
all have as many parameters. `--resume` leaves out models that a run before has tested.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsec import nn
from sparsec.nn import sources

KEYS, MARK, ASK, NOISE, DIGITS = 128, 1, 2, 64, 5
VOCABULARY = 3 + 2 * KEYS
Data = tuple[Tensor, Tensor]
Make = Callable[..., nn.Layer]


def layers(name: str, dim: int, head: int) -> list[nn.Layer]:
    """The two mixing layers of a model."""
    heads = dim // head
    kinds: dict[str, list[tuple[Make, dict[str, Any]]]] = {
        "full": [(nn.Attention, {"width": 4})] * 2,
        "gla": [(nn.GLA, {"width": 4})] * 2,
        "gdn": [(nn.GatedDeltaNet, {})] * 2,
        "sse": [(nn.SSE, {"parts": 4, "k": 1})] * 2,
        "sse_gdn": [(nn.SSE, {"parts": 4, "k": 1, "rule": "gdn"})] * 2,
        "rsa": [(nn.RSA, {"levels": 2, "parts": 4, "k": 1})] * 2,
        "hsa_window": [(nn.HSA, {"chunk": 16, "k": 4, "window": 64})] * 2,
        "hsa_state": [(nn.GatedDeltaNet, {}), (nn.HSA, {"chunk": 16, "k": 4, "window": 64})],
    }
    if name not in kinds:
        raise SystemExit(f"there is no model {name!r}; there are {', '.join(kinds)}")
    return [make(dim, heads, head_dim=head, **more) for make, more in kinds[name]]


MODELS = ("full", "gla", "gdn", "sse", "sse_gdn", "rsa", "hsa_window", "hsa_state")


def remember(model: nn.LanguageModel) -> nn.LanguageModel:
    """The model with decays that begin slow: with two heads, those of larger models would leave none that lasts."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, sources.HeadDecay):
                part.A_log.zero_()
            if isinstance(part, sources.ChannelDecay):
                part.maps[-1].bias.fill_(3.0)  # type: ignore[union-attr]
    return model


def mqar(batch: int, pairs: int, length: int, device: str) -> Data:
    """``pairs`` keys with their values, then keys drawn from them with theirs: ids and targets ``[B,length]``.

    Targets are −100 except at keys that were told before, where they are the value.
    """
    keys = torch.rand(batch, KEYS, device=device).argsort(1)[:, :pairs] + 3
    values = torch.randint(3 + KEYS, 3 + 2 * KEYS, (batch, pairs), device=device)
    told = torch.stack([keys, values], 2)
    drawn = torch.randint(0, pairs, (batch, length // 2 - pairs, 1), device=device)
    ids = torch.cat([told, told.gather(1, drawn.expand(-1, -1, 2))], 1).flatten(1)
    targets = torch.full_like(ids, -100)
    targets[:, 2 * pairs :: 2] = ids[:, 2 * pairs + 1 :: 2]
    return ids, targets


def passkey(batch: int, digits: int, length: int, device: str) -> Data:
    """Noise with a mark and ``digits`` digits somewhere, asked for at the end: ids and targets ``[B,length]``."""
    ids = torch.randint(3 + 10, 3 + 10 + NOISE, (batch, length), device=device)
    code = torch.randint(3, 3 + 10, (batch, digits), device=device)
    starts = torch.randint(0, length - 2 * digits - 2, (batch, 1), device=device)
    whole = torch.cat([torch.full_like(starts, MARK), code], 1)
    ids.scatter_(1, starts + torch.arange(digits + 1, device=device), whole)
    ids[:, -digits - 1], ids[:, -digits:] = ASK, code
    targets = torch.full_like(ids, -100)
    targets[:, -digits - 1 : -1] = code
    return ids, targets


TASKS: dict[str, Callable[[int, int, int, str], Data]] = {"mqar": mqar, "passkey": passkey}


def matched(name: str, dim: int, head: int, parameters: int) -> nn.LanguageModel:
    """A model whose MLPs fill it up to a number of parameters."""
    bare = nn.LanguageModel(VOCABULARY, dim, layers(name, dim, head), 0.0)
    left = parameters - sum(p.numel() for p in bare.parameters())
    return remember(nn.LanguageModel(VOCABULARY, dim, layers(name, dim, head), max(left, 0) / (2 * 3 * dim * dim)))


def answers(model: nn.LanguageModel, data: Data) -> tuple[Tensor, Tensor]:
    """Logits ``[n,vocabulary]`` where a target is, and the targets ``[n]``, row by row."""
    ids, targets = data
    low = torch.bfloat16 if ids.is_cuda else torch.float32
    with torch.autocast(ids.device.type, low, enabled=ids.is_cuda):
        asked = targets != -100
        return (model.hidden(ids)[asked] @ model.embedding.weight.T).float(), targets[asked]


@torch.no_grad()
def accuracy(model: nn.LanguageModel, count: int, length: int, tokens: int, a: argparse.Namespace) -> float:
    """The share of pairs that are recalled, or of passkeys of which every digit is, over at least so many tokens."""
    seen, right = 0, []
    while seen < tokens:
        batch = max(1, min(a.batch, a.test_tokens // length))
        logits, targets = answers(model, TASKS[a.task](batch, count, length, a.device))
        hits = logits.argmax(-1) == targets
        right.append(hits.view(batch, -1).all(1) if a.task == "passkey" else hits)
        seen += batch * length
    return torch.cat(right).float().mean().item()


def cases(a: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """What is tested, by the name of its column: pairs or digits, and length."""
    if a.task == "mqar":
        return {str(n): (n, a.length) for n in a.pairs}
    return {str(a.length * n): (DIGITS, a.length * n) for n in a.times}


def loss_of(model: nn.LanguageModel, step: int, a: argparse.Namespace) -> Tensor:
    """The loss on fresh data."""
    count = a.pairs[step % len(a.pairs)] if a.task == "mqar" else DIGITS
    return cross_entropy(*answers(model, TASKS[a.task](a.batch, count, a.length, a.device)))


def build(name: str, model: nn.LanguageModel, a: argparse.Namespace) -> float:
    """Run what training and tests will run, then wait for the other models; the seconds that building took."""
    start = time.perf_counter()
    for step in range(len(a.pairs)):
        loss_of(model, step, a).backward()
    for count, length in cases(a).values():
        accuracy(model, count, length, 1, a)
    model.zero_grad(set_to_none=True)
    took = time.perf_counter() - start
    print(f"{name} has its kernels after {took:.0f} s", flush=True)
    if a.go:
        (a.out / f"{a.task}_{name}.built").touch()
        while not a.go.exists():
            time.sleep(0.1)
    return took


def train(name: str, a: argparse.Namespace) -> tuple[nn.LanguageModel, dict[str, Any]]:
    """One model on one task, and what it took; building its kernels does not count."""
    torch.manual_seed(a.seed)
    model = matched(name, a.dim, a.head, a.parameters).to(a.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=a.rate, betas=(0.9, 0.98), weight_decay=0.1, fused=a.device == "cuda"
    )
    built = build(name, model, a)
    step, done, start = 0, 0.0, time.perf_counter()
    while done < 1:
        loss = loss_of(model, step, a)
        for group in optimizer.param_groups:
            group["lr"] = a.rate * curve(done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        trained = time.perf_counter() - start
        done = max(step / a.steps, trained / a.seconds if a.seconds else 0.0)
        if step % 100 == 0 or done >= 1:
            print(f"{name} {step} loss {loss.item():.3f} {trained:.0f} s", flush=True)
    size = sum(p.numel() for p in model.parameters())
    took = {"steps": step, "seconds": round(trained, 1), "build_seconds": round(built, 1), "loss": loss.item()}
    return model, {"model": name, "parameters": size, **took}


def trained_and_tested(name: str, a: argparse.Namespace) -> None:
    """Leave the accuracy of a model in a file, as far as it is tested."""
    model, row = train(name, a)
    row["accuracy"] = {}
    for case, (count, length) in cases(a).items():
        row["accuracy"][case] = accuracy(model, count, length, a.test_tokens, a)
        (a.out / f"{a.task}_{name}.json").write_text(json.dumps(row))
        print(f"{name} {row['accuracy']}", flush=True)


def curve(done: float) -> float:
    """The learning rate over its peak: up in the first tenth, then down along a cosine to a twentieth."""
    return min(10 * done + 0.05, 0.525 + 0.475 * math.cos(math.pi * max(0.0, done - 0.1) / 0.9))


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    tested = max((list(row["accuracy"]) for row in rows), key=len)
    lines = [f"| model | parameters | steps | {' | '.join(tested)} |", "|" + "---|" * (len(tested) + 3)]
    for row in rows:
        found = row["accuracy"]
        shares = " | ".join(f"{100 * found[case]:.0f} %" if case in found else "–" for case in tested)
        lines.append(f"| {row['model']} | {row['parameters'] / 1e6:.2f} M | {row['steps']} | {shares} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], title: str) -> str:
    """The results as lines in an SVG picture, one per model, cases evenly spaced."""
    tested = max((list(row["accuracy"]) for row in rows), key=len)
    colours = ("#000", "#888", "#1f77b4", "#d62728", "#ff7f0e", "#9467bd", "#2ca02c", "#8c564b")
    x = [60 + 380 * n / max(1, len(tested) - 1) for n in range(len(tested))]
    parts = [f'<text x="60" y="20">{title}</text>', '<path d="M60 40V240H440" fill="none" stroke="#000"/>']
    parts += [f'<text x="{at - 10:.0f}" y="258">{case}</text>' for at, case in zip(x, tested, strict=True)]
    parts += [f'<text x="20" y="{245 - 2 * share}">{share} %</text>' for share in (0, 50, 100)]
    for n, (row, colour) in enumerate(zip(rows, colours, strict=False)):
        found = [(at, row["accuracy"][c]) for at, c in zip(x, tested, strict=True) if c in row["accuracy"]]
        points = " ".join(f"{at:.0f},{240 - 200 * share:.0f}" for at, share in found)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="455" y="{50 + 18 * n}" fill="{colour}">{row["model"]}</text>')
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="560" height="270" font-size="12">\n{body}\n</svg>\n'


def options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("mqar", "passkey"), default="mqar")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("recall-out"), help="folder of tables, plots and logs")
    parser.add_argument("--device", default=device)
    parser.add_argument("--pairs", nargs="+", type=int, default=[8, 16, 32, 64], help="trained and tested, in turn")
    parser.add_argument(
        "--times", nargs="+", type=int, default=[1, 4, 16, 64], help="lengths tested, of the trained one"
    )
    for name, default in {"steps": 1500, "batch": 64, "length": 256, "dim": 128, "head": 64, "parameters": 900_000,
                          "test-tokens": 2**18, "seed": 0, "seconds": 600, "limit": 900}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--resume", action="store_true", help="keep the results that --out has")
    parser.add_argument("--apart", action="store_true", help="train in this process, one model after the other")
    parser.add_argument("--go", type=Path, help="with --apart: a file to wait for between building and training")
    return parser.parse_args(words)


def tested(name: str, a: argparse.Namespace) -> bool:
    """Whether a run before has tested a model in every case."""
    file = a.out / f"{a.task}_{name}.json"
    return file.exists() and set(json.loads(file.read_text())["accuracy"]) == set(cases(a))


def spread(a: argparse.Namespace, words: list[str]) -> None:
    """Every model in a process of its own, all at once; none trains before all have built their kernels."""
    go, end = a.out / f"{a.task}.go", time.monotonic() + a.limit
    for file in (go, *(a.out / f"{a.task}_{name}.built" for name in a.models)):
        file.unlink(missing_ok=True)
    running = {}
    for name in a.models:
        call = [sys.executable, __file__, *words, "--models", name, "--apart", "--go", str(go), "--out", str(a.out)]
        log = (a.out / f"{a.task}_{name}.log").open("w")
        running[name] = subprocess.Popen(call, stdout=log, stderr=log)
    while time.monotonic() < end - a.limit / 2 and not all(
        (a.out / f"{a.task}_{name}.built").exists() or process.poll() is not None for name, process in running.items()
    ):
        time.sleep(0.1)
    go.touch()
    for name, process in running.items():
        try:
            process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            print(f"{name}: not done within {a.limit} s")


def main(words: list[str] | None = None) -> None:
    """Train the models and print, and leave in a folder, the table and the plot."""
    words = sys.argv[1:] if words is None else words
    a = options(words)
    a.out.mkdir(parents=True, exist_ok=True)
    for name in a.models:
        layers(name, a.dim, a.head)
    left = [name for name in a.models if not (a.resume and tested(name, a))]
    for name in left:
        (a.out / f"{a.task}_{name}.json").unlink(missing_ok=True)
    if a.apart or a.device == "cpu":
        for name in left:
            trained_and_tested(name, a)
    else:
        spread(argparse.Namespace(**{**vars(a), "models": left}), words)
    files = [a.out / f"{a.task}_{name}.json" for name in a.models]
    rows = [json.loads(file.read_text()) for file in files if file.exists()]
    if rows:
        (a.out / f"{a.task}.md").write_text(table(rows) + "\n")
        (a.out / f"{a.task}.svg").write_text(plot(rows, f"{a.task}: accuracy"))
        print(table(rows))


if __name__ == "__main__":
    main()
