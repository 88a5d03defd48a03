"""Declared recurrences that between them use every rule of matrix states, and inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.ir.variant import Variant

HEAD = "q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], beta: [B,T,HKV]"

RECURRENT = {
    "linear": f"variant linear({HEAD}) {{ return recall(q, write(state(), k, v, beta=beta)) }}",
    "scalar": f"""variant scalar({HEAD}, g: [B,T,HKV] float32) {{
      return recall(q, write(state(), k, v, beta=beta, decay=g) {{decay_kind = scalar}}) {{scale = rsqrt(D)}}
    }}""",
    "channel": f"""variant channel({HEAD}, g: [B,T,HKV,D] float32, m: [B,1,HKV,D,DV] float32) {{
      s = write(state(m), k, v, beta=beta, decay=g) {{decay_kind = key}}
      return recall(q, s) {{scale = rsqrt(D)}}, s
    }}""",
    "value-channel": f"""variant value_channel({HEAD}, g: [B,T,HKV,DV] float32, m: [B,1,HKV,D,DV] float32) {{
      s = write(state(m), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = value}}
      return recall(q, s) {{scale = rsqrt(D)}}, s
    }}""",
    "delta": f"""variant delta({HEAD}) {{
      return recall(q, write(state(), k, v, beta=beta) {{rule = delta}}) {{scale = rsqrt(D)}}
    }}""",
    "gated-delta": f"""variant gated_delta({HEAD}, g: [B,T,HKV] float32, m: [B,1,HKV,D,DV] float32) {{
      s = write(state(m), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{scale = rsqrt(D)}}, s
    }}""",
    "channel-delta": f"""variant channel_delta({HEAD}, g: [B,T,HKV,D] float32) {{
      s = write(state(), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = key}}
      return recall(q, s) {{scale = rsqrt(D)}}, s
    }}""",
    "erase": f"""variant erase({HEAD}, g: [B,T,HKV,D] float32, a: [B,T,HKV,D], b: [B,T,HKV,D]) {{
      s = write(state(), k, v, beta=beta, decay=g, erase_a=a, erase_b=b) {{rule = delta, decay_kind = key}}
      return recall(q, s)
    }}""",
    "undecayed-erase": f"""variant undecayed_erase({HEAD}, g: [B,T,HKV,D] float32, a: [B,T,HKV,D], b: [B,T,HKV,D],
                                                    m: [B,1,HKV,D,DV] float32) {{
      s = write(state(m), k, v, beta=beta, decay=g, erase_a=a, erase_b=b)
        {{rule = delta, decay_kind = key, reads = undecayed}}
      return recall(q, s), s
    }}""",
    "two-readers": f"""variant two_readers({HEAD}, p: [B,T,H,D], g: [B,T,HKV] float32) {{
      s = write(state(), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = scalar, reads = undecayed}}
      return recall(q, s), recall(p, s) {{when = before}}, s
    }}""",
    "shared-keys": """variant shared_keys(q: [B,T,HKV,D], k: [B,T,HKV,D], v: [B,T,H,DV], beta: [B,T,H],
                                          g: [B,T,H] float32, m: [B,1,H,D,DV] float32) {
      s = write(state(m) {heads = H}, k, v, beta=beta, decay=g) {rule = delta, decay_kind = scalar}
      return recall(q, s) {scale = rsqrt(D)}, s
    }""",
    "turned": f"""variant turned({HEAD}, g: [B,T,HKV] float32, r: [B,T,H,DV]) {{
      s = write(state(), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = scalar}}
      return recall(r, s) {{turned = true, scale = 0.5}}, recall(q, s), recall(r, s) {{turned = true, when = before}}
    }}""",
    "learned": f"""variant learned({HEAD}, g: [B,T,HKV,D] float32, m: [1,HKV,D,DV] float32) {{
      s = write(state(m), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = key}}
      return recall(q, s), s
    }}""",
}
"""What kernels run; the last with first states that all batch entries share."""

ROUTED = f"""variant routed({HEAD}, g: [B,T,HKV], y: [B,T,1,DX], w: [3,1,DX]) {{
  scores = score(y, w) {{fn = router}}
  chosen = topk(scores) {{k = 1, unit = part, scope = token, selector_gradient = through_weights}}
  e = weights(scores, chosen) {{fn = softmax, renormalise = false}}
  s = write(state() {{parts = 3}}, k, v, beta=beta, decay=g, route=chosen, weight=e)
    {{rule = delta, decay_kind = scalar}}
  return recall(q, s) {{renormalise = false}}, s
}}"""
"""Parts that rest."""

GIVEN = HEAD + ", p: [B,T,{lists},{slots}] int32, e: [B,T,{lists},{slots}]"
TOKENS, STATES = (GIVEN.format(lists=lists, slots=slots) for lists, slots in (("1", "2"), ("HKV", "3")))

ROUTES = {
    "routed": ROUTED,
    "two of four": f"""variant two_of_four({TOKENS}, g: [B,T,HKV,D] float32, m: [B,4,HKV,D,DV] float32) {{
      s = write(state(m) {{parts = 4}}, k, v, beta=beta, decay=g, weight=e,
                route=given(p) {{unit = part, scope = token}}) {{decay_kind = key}}
      return recall(q, s) {{renormalise = false, scale = rsqrt(D)}}, s
    }}""",
    "lists per head": f"""variant lists_per_head({STATES}, g: [B,T,HKV] float32, r: [B,T,H,D],
                                                    m: [4,HKV,D,DV] float32) {{
      s = write(state(m) {{parts = 4}}, k, v, beta=beta, decay=g, route=given(p) {{unit = part}}, weight=e)
        {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{renormalise = false}}, recall(r, s) {{renormalise = false, when = before}}, s
    }}""",
    "erasing parts": f"""variant erasing_parts({TOKENS}, g: [B,T,HKV,D] float32, a: [B,T,HKV,D], b: [B,T,HKV,D]) {{
      s = write(state() {{parts = 4}}, k, v, beta=beta, decay=g, erase_a=a, erase_b=b, weight=e,
                route=given(p) {{unit = part, scope = token}}) {{rule = delta, decay_kind = key, reads = undecayed}}
      return recall(q, s) {{renormalise = false}}
    }}""",
    "delta from given states": f"""variant delta_parts({STATES}, g: [B,T,HKV] float32, m: [4,HKV,D,DV] float32) {{
      s = write(state(m) {{parts = 4}}, k, v, beta=beta, decay=g, route=given(p) {{unit = part}}, weight=e)
        {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{renormalise = false}}, s
    }}""",
    "a slot of two": f"""variant slot_of_two({TOKENS}, g: [B,T,HKV] float32, m: [B,4,HKV,D,DV] float32) {{
      s = write(state(m) {{parts = 4}}, k, v, beta=beta, decay=g, weight=e,
                route=given(p) {{unit = part, scope = token}}) {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{slot = 1, scale = rsqrt(D)}}, s
    }}""",
    "slots apart": f"""variant slots_apart({STATES}, g: [B,T,HKV] float32, r: [B,T,H,D]) {{
      s = write(state() {{parts = 4}}, k, v, beta=beta, decay=g, route=given(p) {{unit = part}}, weight=e)
        {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{slot = 0}}, recall(q, s) {{slot = 2}}, recall(r, s) {{slot = 1, when = before}}, s
    }}""",
    "parts that decay at rest": f"""variant decaying_parts({TOKENS}, g: [B,T,HKV] float32) {{
      s = write(state() {{parts = 4}}, k, v, beta=beta, decay=g, weight=e,
                route=given(p) {{unit = part, scope = token}})
        {{rule = delta, decay_kind = scalar, freeze_unselected = false}}
      return recall(q, s) {{renormalise = false}}, s
    }}""",
    "a tree": f"""variant tree({HEAD}, y: [B,T,1,DX], w: [2,1,DX], z: [6,1,DX]) {{
      above = topk(score(y, w) {{fn = router}}) {{k = 1, unit = part, scope = token}}
      scores = score(y, z) {{fn = router}}
      chosen = topk(scores, within=above)
        {{k = 1, unit = part, scope = token, selector_gradient = through_weights, fanout = 3}}
      e = weights(scores, chosen) {{fn = softmax, renormalise = false}}
      s = write(state() {{parts = 6}}, k, v, beta=beta, route=chosen, weight=e)
      return recall(q, s)
    }}""",
}
"""Banks of which tokens choose parts, by a router or by given lists ``p``."""

DECAYS = ((2, 0.0), (3, -torch.inf), (4, -60.0), (20, -8.0))
"""Tokens whose log-decays are what kernels may stumble over."""


def draw(
    variant: Variant, sizes: dict[str, int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs in the call's dtype and fp32: k, a and b short, beta between 0 and 1, g log-decays with ``DECAYS``."""
    generator, made = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, spec in variant.inputs.items():
        shape = [sizes[str(d)] if str(d) in sizes else int(str(d)) for d in spec.shape]
        if spec.dtype == "int32":
            made[name] = _lists(shape, generator)
            continue
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name in ("k", "a", "b"):
            x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        if name == "beta":
            x = torch.sigmoid(x)
        if name == "g":
            x = -x.abs()
            for at, value in DECAYS:
                x[:, at : at + 1] = value
        exact = dtype is torch.float64 or spec.dtype == "float"
        made[name] = x.to(dtype if exact else torch.float32)
    return made


def _lists(shape: list[int], generator: torch.Generator) -> Tensor:
    """Some of four parts per token, in any order, now and then none."""
    order = torch.rand([*shape[:-1], 4], generator=generator).argsort(-1)[..., : shape[-1]]
    none = torch.rand(shape, generator=generator) < 0.15
    return torch.where(none, -1, order).to(torch.int32)
