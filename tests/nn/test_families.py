"""Layers of every family: the op they call is right, gradients reach every parameter, steps equal one forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import sparsec
from sparsec import nn
from sparsec.ir.error import DeclarationError, InputError
from sparsec.oracle import check, oracle

DIM, HEADS, HEAD, TOKENS = 24, 2, 8, 19
LAYERS: dict[str, Callable[..., nn.Layer]] = {
    "full": nn.Attention,
    "fox": partial(nn.Attention, name="fox"),
    "hsa": partial(nn.HSA, chunk=4, k=2, window=5),
    "linear": nn.LinearAttention,
    "retnet": nn.RetNet,
    "mamba2": partial(nn.Mamba2, kv_heads=4),
    "gla": nn.GLA,
    "hgrn2": partial(nn.HGRN2, lower=0.25),
    "deltanet": nn.DeltaNet,
    "gdn": partial(nn.GatedDeltaNet, value_dim=12),
    "delta_product": nn.DeltaProduct,
    "gdn2": nn.GatedDeltaNet2,
    "kda": nn.KDA,
    "rwkv7": nn.RWKV7,
    "sse": partial(nn.SSE, parts=3, k=1),
    "sse_gdn": partial(nn.SSE, parts=3, k=1, rule="gdn"),
    "log_linear": partial(nn.LogLinear, levels=6),
    "gsa": partial(nn.GSA, slots=4),
    "rsa": partial(nn.RSA, levels=2, parts=3, k=1),
}


def layer(name: str) -> nn.Layer:
    torch.manual_seed(0)
    return LAYERS[name](DIM, HEADS, head_dim=HEAD)


def hidden(tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(1))


def is_idle(p: torch.nn.Parameter) -> bool:
    return p.grad is None or not bool(p.grad.isfinite().all()) or not bool(p.grad.any())


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    made, x = layer(name), hidden()
    y = made(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert [key for key, p in made.named_parameters() if is_idle(p)] == []
    with torch.no_grad():
        inputs = made.inputs(x)
        done, truth = made.op(x.device)(**inputs), oracle(made.variant, inputs, form="vector")
        assert isinstance(done, torch.Tensor) and isinstance(truth, torch.Tensor)
        assert check(done, truth, "float32")
        cache = made.init_cache(2, TOKENS)
        steps = [made(x[:, a:b], cache) for a, b in ((0, 14), (14, 15), (15, TOKENS))]
    assert torch.allclose(torch.cat(steps, 1), y, atol=1e-5)


def test_a_state_dict_makes_the_same_layer() -> None:
    first, x = layer("kda"), hidden()
    torch.manual_seed(5)
    second = LAYERS["kda"](DIM, HEADS, head_dim=HEAD)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_a_layer_of_a_declaration_of_ones_own() -> None:
    text = sparsec.preset("gdn", raw=True).text()
    made = nn.Layer(sparsec.parse(text), DIM, HEADS, head_dim=HEAD)
    inputs = made.inputs(hidden())
    assert inputs["beta"].min() > 0 and inputs["beta"].max() < 1
    assert inputs["g"].max() < 0
    assert made(hidden()).shape == (2, TOKENS, DIM)


@pytest.mark.parametrize("make", [nn.SSE, nn.RWKV7, nn.KDA])
def test_autocast_gives_the_op_one_dtype(make: type[nn.State]) -> None:
    made = make(DIM, HEADS, head_dim=HEAD)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = made.inputs(hidden())
    wanted = {"float": torch.bfloat16, "float32": torch.float32}
    assert {n: x.dtype for n, x in inputs.items()} == {n: wanted[s.dtype] for n, s in made.variant.inputs.items()}


def test_inputs_that_no_layer_makes_are_named() -> None:
    with pytest.raises(sparsec.DeclarationError, match=r"input l.*row per token"):
        nn.Attention(DIM, HEADS, "hsa")


def test_a_model_learns_and_continues() -> None:
    torch.manual_seed(0)
    layers = [nn.GatedDeltaNet(DIM, HEADS, head_dim=HEAD), nn.Attention(DIM, HEADS, head_dim=HEAD)]
    model = nn.LanguageModel(11, DIM, layers)
    ids = torch.arange(24).remainder(7).view(1, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(model.generate(ids[:, :10], 5), ids[:, :15])


@pytest.mark.parametrize(
    "make, option, near",
    [(nn.GLA, "value_dims", "value_dim"), (nn.SSE, "balanse", "balance"), (nn.Attention, "rotery", "rotary")],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(
    make: Callable[..., nn.Layer], option: str, near: str
) -> None:
    with pytest.raises(sparsec.DeclarationError, match=rf"{option}.*did you mean `{near}`"):
        make(DIM, HEADS, **{option: 1})


def test_a_balance_loss_is_of_training_alone() -> None:
    made, x = nn.SSE(DIM, HEADS, head_dim=HEAD, parts=3, balance=0.5), hidden()
    y = made(x)
    (loss,) = made.losses
    loss.backward()
    assert not is_idle(made.own["w"])
    with torch.no_grad():
        cache = made.init_cache(2)
        assert torch.allclose(made(x, cache), y, atol=1e-5)
    assert made.losses == () and len(made.step.outputs) == 1


def test_lola_makes_features_that_are_positive() -> None:
    """Its kernels are held to the oracle elsewhere."""
    made = nn.LoLA(DIM, HEADS, head_dim=HEAD, window=4, keep=2, chunk=2)
    inputs = made.inputs(hidden())
    assert all(bool((inputs[name] > 0).all()) and inputs[name].shape == (2, TOKENS, 2, HEAD) for name in ("fq", "fk"))
    right = oracle(made.variant, inputs, form="vector")
    assert isinstance(right, torch.Tensor) and right.shape == (2, TOKENS, 2, HEAD) and bool(right.isfinite().all())


def test_layers_of_another_dim() -> None:
    with pytest.raises(DeclarationError, match=r"layers\[1\]: dim = 32: hidden states have 24 channels"):
        nn.LanguageModel(11, DIM, [layer("gdn"), nn.GatedDeltaNet(32, 2)])


def test_a_layer_is_copied_after_a_call_with_losses() -> None:
    """As averages of weights copy a model in training."""
    made, x = nn.SSE(DIM, HEADS, head_dim=HEAD, parts=3, k=1, balance=0.01), hidden()
    y = made(x)
    assert made.losses and made.losses[0].requires_grad
    copied = copy.deepcopy(made)
    assert copied.losses == () and torch.equal(copied(x), y)


def test_what_no_layer_takes_is_named() -> None:
    for x in (hidden()[0], hidden()[..., 1:]):
        with pytest.raises(InputError, match=r"input x: shape \(.*hidden states are \[B, T, 24\]"):
            layer("gdn")(x)
    model = nn.LanguageModel(7, DIM, [layer("gdn")])
    for ids, temperature, said in ((torch.zeros(1, 0), 0.0, "a token or more"), (torch.zeros(1, 1), -1.0, "0 or more")):
        with pytest.raises(InputError, match=said):
            model.generate(ids.long(), 1, temperature)
    odd = sparsec.parse("""variant odd(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, E]) {
      m = tokens(k, v)
      return attend(q, m, mask(m) {where = j <= i})
    }""")
    with pytest.raises(DeclarationError, match=r"layer of odd: the dim E of v: .*a layer has the dims H, HKV"):
        nn.Layer(odd, DIM, HEADS, head_dim=HEAD)


def test_a_step_that_has_no_room_changes_nothing() -> None:
    """Neither the tails of convolutions nor the states of layers before the one that refuses."""
    torch.manual_seed(0)
    model = nn.LanguageModel(7, DIM, [layer("gdn"), nn.Attention(DIM, HEADS, head_dim=HEAD, width=4)])
    ids = torch.randint(7, (1, 8))
    with torch.no_grad():
        caches = model.init_caches(1, 8)
        model(ids[:, :5], caches)
        with pytest.raises(InputError, match="the cache was made for 8 tokens"):
            model(ids[:, :4], caches)
        with pytest.raises(InputError, match="the cache was made for 8 tokens"):
            model.blocks[1].layer(hidden()[:1, :4], caches[1])  # type: ignore[operator]
        torch.testing.assert_close(model(ids[:, 5:], caches), model(ids)[:, 5:])


@pytest.mark.parametrize(
    "make",
    [
        partial(nn.Attention, width=4, rotary=True),
        nn.GatedDeltaNet,
        partial(nn.LoLA, window=4, chunk=4, keep=3),
    ],
)
def test_a_draft_that_is_refused_is_taken_back(make: Callable[..., nn.Layer]) -> None:
    """Convolutions' tails and positions too, as often as one likes; from before the first token on."""
    torch.manual_seed(0)
    model = nn.LanguageModel(7, DIM, [make(DIM, HEADS, head_dim=HEAD) for _ in range(2)])
    ids = torch.randint(7, (1, 15))
    with torch.no_grad():
        caches, whole = model.init_caches(1, 32), model(ids)
        empty = [cache.snapshot() for cache in caches]
        model(ids[:, :9], caches)
        before = [cache.snapshot() for cache in caches]
        for back, start in ((before, 9), (before, 9), (empty, 0)):
            model(6 - ids[:, 9:12], caches)
            for cache, snapshot in zip(caches, back, strict=True):
                cache.restore(snapshot)
            torch.testing.assert_close(model(ids[:, start:], caches), whole[:, start:])


@pytest.mark.parametrize("given", ["swapped", "too few", "too many"])
def test_caches_of_other_layers_change_nothing(given: str) -> None:
    """Layers before the one whose cache it is not have not seen the step either."""
    torch.manual_seed(0)
    designs = ("gdn", "gdn", "retnet")
    model = nn.LanguageModel(7, DIM, [layer(design) for design in designs])
    ids = torch.randint(7, (1, 8))
    with torch.no_grad():
        caches = model.init_caches(1)
        model(ids[:, :5], caches)
        wrong = {"swapped": [caches[0], caches[2], caches[1]], "too few": caches[:2], "too many": [*caches, caches[0]]}
        with pytest.raises(InputError, match=r"made for|there are 3 layers"):
            model(ids[:, 5:], wrong[given])
        torch.testing.assert_close(model(ids[:, 5:], caches), model(ids)[:, 5:])


@pytest.mark.parametrize(("options", "said"), [({"index_dim": 5}, "q_index of 5"), ({"head_dim": 15}, "of 15")])
def test_odd_channels_are_not_rotated(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=f"{said} channels: .*in pairs. Fix: an even number, or rotary=False"):
        nn.Attention(DIM, HEADS, "dsa", k=5, **{"head_dim": HEAD, **options})
    made = nn.Attention(DIM, HEADS, "dsa", k=5, rotary=False, **{"head_dim": HEAD, "index_dim": 5})
    assert made(hidden()).shape == hidden().shape


@pytest.mark.parametrize("name, knobs", [("dsa", {"k": 5}), ("minimax", {"block": 4, "k": 2})])
def test_indexers_learn_by_a_loss_of_their_own(name: str, knobs: dict[str, Any]) -> None:
    """Heads and channels of the indexer are options; decode steps compute no loss."""
    torch.manual_seed(0)
    made = nn.Attention(DIM, HEADS, name, training="kl", head_dim=HEAD, index_heads=3, index_dim=4, **knobs)
    x = hidden()
    y = made(x)
    (loss,) = made.losses
    (y.square().sum() + loss.sum()).backward()
    assert [key for key, p in made.named_parameters() if is_idle(p)] == []
    index = made.inputs(x)["q_index"]
    assert index.shape[2:] == ((3, 4) if name == "dsa" else (HEADS, 4))
    with torch.no_grad():
        cache = made.init_cache(2, TOKENS)
        steps = [made(x[:, a:b], cache) for a, b in ((0, 14), (14, 15), (15, TOKENS))]
    assert torch.allclose(torch.cat(steps, 1), y, atol=1e-5)
