"""What no kernel serves is refused where it is declared, compiled or given; what was refused changes nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import sparsec
from sparsec import nn
from sparsec.ir.error import InputError

SIZES: dict[str, Any] = {"B": 1, "H": 2, "HKV": 1, "D": 16, "DV": 16}


def test_views_that_negate_are_refused_though_their_layout_is_known() -> None:
    made = sparsec.compile(sparsec.preset("streaming", window=8, sinks=2), target="interpreter")
    x = sparsec.inputs(made.variant, T=9, **SIZES)
    made(**x)
    cache = made.init_cache(1, 16)
    for call in (made, lambda **x: made.decode(cache, **x)):
        with pytest.raises(InputError, match="a view that negates"):
            call(**{**x, "q": torch._neg_view(x["q"])})
    ends = torch.tensor([0, 9], dtype=torch.int32)
    tokens = {name: t[0] for name, t in x.items()}
    made(cu_seqlens=ends, **tokens)
    with pytest.raises(InputError, match="a view that negates"):
        made(cu_seqlens=ends, **{**tokens, "q": torch._neg_view(tokens["q"])})


def test_a_cache_is_neither_copied_nor_pickled() -> None:
    made = sparsec.compile(sparsec.preset("streaming", window=8, sinks=2), target="interpreter")
    cache = made.init_cache(1, 16)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="copied or pickled"):
            copied(cache)


def test_a_refused_step_leaves_tails_and_earlier_layers_as_they_were() -> None:
    torch.manual_seed(0)
    layers = [nn.Attention(16, 2, head_dim=16, width=4) for _ in range(2)]
    model = nn.LanguageModel(7, 16, layers)
    ids = torch.randint(7, (1, 8))
    with torch.no_grad():
        caches = model.init_caches(1, 8)
        model(ids[:, :5], caches)
        with pytest.raises(InputError, match="the cache was made for 1 sequences"):
            model(ids[:, 5:6].expand(2, 1), caches)
        with pytest.raises(InputError, match="float"):
            layers[0].double()(torch.ones(1, 1, 16).double(), caches[0])  # by the op, after convolutions ran
        layers[0].float()
        torch.testing.assert_close(model(ids[:, 5:], caches), model(ids)[:, 5:])


@pytest.mark.parametrize(
    ("how", "begun"), [("rounded", 5), ("other weights", 0), ("other weights", 5), ("elsewhere", 0), ("elsewhere", 5)]
)
def test_a_step_that_a_later_layer_refuses_is_no_step_of_earlier_ones(how: str, begun: int) -> None:
    """States take tokens of any dtype, rows of a cache do not; and linear maps take what is theirs."""
    torch.manual_seed(0)
    lola = nn.LoLA(16, 2, head_dim=16, window=4, keep=2, chunk=2, width=4)
    last = nn.Attention(16, 2, head_dim=16, width=0 if how == "rounded" else 4)
    model = nn.LanguageModel(7, 16, [nn.GatedDeltaNet(16, 2, head_dim=16), lola, last])
    ids, weights = torch.randint(7, (1, 8)), copy.deepcopy(last.state_dict())
    with torch.no_grad():
        caches = model.init_caches(1, 8)
        if begun:
            model(ids[:, :begun], caches)
        if how == "other weights":
            last.double()
        if how == "elsewhere":
            last.to("meta")
        rounded = torch.autocast("cpu", torch.bfloat16, enabled=how == "rounded")
        with rounded, pytest.raises((InputError, RuntimeError)):
            model(ids[:, begun : begun + 2], caches)
        last.to_empty(device="cpu").float().load_state_dict(weights)
        torch.testing.assert_close(model(ids[:, begun:], caches), model(ids)[:, begun:])
        assert [cache.seen for cache in caches] == [8, 8, 8]


def test_steps_like_the_last_one_copy_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.LanguageModel(7, 16, [nn.GatedDeltaNet(16, 2, head_dim=16)])
    caches, ids = model.init_caches(1), torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        model(ids, caches)
        monkeypatch.setattr(type(caches[0].op), "snapshot", None)
        model(ids, caches)
    assert caches[0].seen == 2
