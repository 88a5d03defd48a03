"""Layers that no preset has, declared as text: what the presets leave out of the kernels' features."""

from __future__ import annotations

DECLARED: dict[str, str] = {
    # Both results of an attend; a bias with a captured tensor.
    "alibi-lse": """
variant alibi(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], slopes: [H] float32) {
  memory = tokens(k, v)
  past = mask(memory) {where = (j <= i) & (i - j < 40)}
  o = attend(q, memory, past, slopes=slopes) {bias = score - abs(slopes[h]) * (i - j)}
  return o, lse(o)
}
""",
    # No mask: every length ends in the middle of a tile.
    "open": """
variant open(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {
  memory = tokens(k, v)
  o = attend(q, memory)
  return o, lse(o)
}
""",
    # Any chunk may be chosen, the partial last one too.
    "open-chunks": """
variant open_chunks(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(memory) {fn = mean, size = 16, stride = 16, fields = k}
  grouped = reduce(score(q, marks)) {over = group, op = max}
  chosen = topk(grouped) {k = 3, size = 16, order = oldest}
  o = attend(q, memory, chosen)
  return o, lse(o)
}
""",
    # Lists and weights per head; a sink inside each chunk.
    "head-weights": """
variant head_weights(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], sink: [H] float32) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(memory) {fn = max, size = 16, stride = 16, fields = k}
  scores = score(q, marks)
  chosen = topk(scores) {k = 3, size = 16, scope = head, eligible = 16 * c <= i, forced = c == 0}
  w = weights(scores, chosen) {fn = sigmoid}
  past = mask(memory) {where = j <= i}
  return attend(q, memory, chosen, past, weights=w, sink=sink) {per = chunk, sink = given}
}
""",
    # One list for all heads, of a length that differs from token to token; soft cap; small chunks share a tile.
    "counted": """
variant counted(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV],
                ids: [B, TQ, 1, 5] int32, many: [B, TQ, 1] int32) {
  memory = tokens(k, v) {chunk = 4}
  chosen = given(ids, counts=many) {size = 4, scope = token}
  past = mask(memory) {where = j <= i}
  return attend(q, memory, chosen, past) {softcap = 4.0}
}
""",
    # A list and a window that do not meet, as one softmax in two kernels and a third that joins them.
    "joined": """
variant joined(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], l: [B, (TK + 15) // 16, HKV, D]) {
  memory = tokens(k, v) {chunk = 16}
  grouped = reduce(score(q, l)) {over = group, op = sum}
  chosen = topk(grouped) {k = 2, size = 16, eligible = 16 * c + 16 <= i // 16 * 16}
  far = attend(q, memory, chosen)
  own = mask(memory) {where = (j <= i) & (i // 16 * 16 - j <= 0)}
  near = attend(q, memory, own)
  o = merge(far, near) {fn = lse}
  return o, lse(o)
}
""",
    # A convex mixture with weights that are a softmax over the chosen and a sink.
    "mixed": """
variant mixed(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], g: [B, TQ, H]) {
  memory = tokens(k, v) {chunk = 32}
  marks = summary(memory) {fn = mean, size = 32, stride = 32, fields = k}
  grouped = reduce(score(q, marks)) {over = group, op = mean}
  chosen = topk(grouped) {k = 4, size = 32, eligible = 32 * c <= i, order = newest}
  w = weights(grouped, chosen) {fn = softmax_sink}
  past = mask(memory) {where = j <= i}
  far = attend(q, memory, chosen, past, weights=w) {per = chunk}
  near = attend(q, memory, mask(memory) {where = (j <= i) & ((i - j) % 3 == 0)})
  return merge(far, near, map(g) {fn = sigmoid(x0)}) {fn = convex}
}
""",
    # Several documents in one row: a query sees its own only.
    "documents": """
variant documents(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], document: [B, TK] int32) {
  memory = tokens(k, v)
  own = mask(memory, document=document) {where = (j <= i) & (document[b, i] == document[b, j])}
  return attend(q, memory, own)
}
""",
    # Two memories of different lengths under one softmax; a predicate reads the length of the other.
    "two-memories": """
variant two_memories(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV],
                     k2: [B, TM, HKV, D], v2: [B, TM, HKV, DV]) {
  memory = tokens(k, v)
  other = tokens(k2, v2)
  near = attend(q, memory, mask(memory) {where = (j <= i) & (i - j < TM + 9)})
  o = merge(near, attend(q, other, mask(other) {where = j < TM - 1})) {fn = lse}
  return o, lse(o)
}
""",
    # Dims of other names; a mask that begins inside a tile and reads the number of keys.
    "other-names": """
variant other_names(q: [B, L, H, D], k: [B, S, HKV, D], v: [B, S, HKV, DV]) {
  memory = tokens(k, v)
  o = attend(q, memory, mask(memory) {where = (3 <= j) & (j <= i) & (j < S - 1)})
  return o, lse(o)
}
""",
    # A bias without scores, of whole numbers, with an index that leaves the captured tensor.
    "bias-alone": """
variant bias_alone(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], far: [9] float32) {
  memory = tokens(k, v)
  past = mask(memory) {where = j <= i}
  fixed = attend(q, memory, past) {bias = -abs(i - j) // 4}
  return merge(fixed, attend(q, memory, past, far=far) {bias = score + far[i - j]}) {fn = sum}
}
""",
    # Probabilities averaged over windows; lists in the order of their ids.
    "pooled-means": """
variant pooled_means(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(memory) {fn = mean, size = 8, stride = 4, fields = k}
  shares = reduce(score(q, marks)) {over = group, op = sum, pre = softmax, visible = 4 * c + 7 <= i}
  worth = reduce(shares) {over = blocks, op = mean, kernel = 5, stride = 4, padding = 1}
  chosen = topk(worth) {k = 3, size = 16, eligible = 16 * c <= i, order = oldest}
  past = mask(memory) {where = j <= i}
  return attend(q, memory, chosen, past)
}
""",
    # Chosen as they are, trained as if the choice were the score: chunks by the mean of a group, beside a mask.
    "straight": """
variant straight(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], r: [B, TQ, H, DR],
                 l: [B, (TK + 15) // 16, HKV, DR]) {
  memory = tokens(k, v) {chunk = 16}
  grouped = reduce(score(r, l)) {over = group, op = mean}
  chosen = topk(grouped) {k = 3, size = 16, eligible = 16 * c <= i, selector_gradient = straight_through}
  past = mask(memory) {where = j <= i}
  return attend(q, memory, chosen, past)
}
""",
    # The same of single tokens, by an indexer, read under a soft cap.
    "straight-tokens": """
variant straight_tokens(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], r: [B, TQ, HI, DI],
                        l: [B, TK, 1, DI], w: [B, TQ, HI]) {
  scores = score(r, tokens(l), head_weights=w) {fn = indexer}
  chosen = topk(scores) {k = 9, unit = token, scope = token, eligible = c <= i, selector_gradient = straight_through}
  return attend(q, tokens(k, v), chosen) {softcap = 4.0}
}
""",
    # Chunks merged as they are, as if by their stick-breaking weights when it comes to gradients.
    "straight-weights": """
variant straight_weights(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], l: [B, (TK + 15) // 16, HKV, D]) {
  memory = tokens(k, v) {chunk = 16}
  grouped = reduce(score(q, l)) {over = group, op = sum}
  chosen = topk(grouped) {
    k = 3, size = 16, eligible = 16 * c + 16 <= i, order = newest, selector_gradient = straight_through
  }
  return attend(q, memory, chosen, weights=weights(grouped, chosen) {fn = stick}) {per = chunk}
}
""",
    # Scores of chunks that learn how much attention each chunk got, in a list per head; a sink takes some of it.
    "kl-chunks": """
variant kl_chunks(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], r: [B, TQ, H, DR],
                  l: [B, (TK + 15) // 16, HKV, DR]) {
  memory = tokens(k, v) {chunk = 16}
  scores = score(r, l)
  chosen = topk(scores) {k = 3, size = 16, scope = head, eligible = 16 * c <= i, selector_gradient = kl}
  past = mask(memory) {where = j <= i}
  o = attend(q, memory, chosen, past) {sink = zero}
  loss = aux(scores, chosen, target=o) {fn = kl, coefficient = 0.5}
  return o, loss
}
""",
    # Two sizes of chunks, weighed by one tensor.
    "weighted": """
variant weighted(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], w: [B, TQ, H, 2]) {
  large = tokens(k, v) {chunk = 32}
  small = tokens(k, v) {chunk = 16}
  far = score(q, summary(large) {size = 32, stride = 32})
  near = score(q, summary(small) {size = 16, stride = 16})
  few = topk(far) {k = 1, size = 32, scope = head, eligible = complete_past}
  more = topk(near) {k = 3, size = 16, scope = head, eligible = complete_past}
  return merge(attend(q, large, few), attend(q, small, more), map(w) {row = softmax}) {fn = weighted}
}
""",
}
"""Name -> text."""

FORWARD: dict[str, str] = {
    # Weights from outside, which belong to the slots of a list in order.
    "given-weights": """
variant given_weights(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], l: [B, (TK + 15) // 16, HKV, D],
                      w: [B, TQ, HKV, 3] float32) {
  memory = tokens(k, v) {chunk = 16}
  grouped = reduce(score(q, l)) {over = group, op = sum}
  chosen = topk(grouped) {k = 3, size = 16, eligible = 16 * c + 16 <= i, order = newest}
  return attend(q, memory, chosen, weights=w) {per = chunk}
}
""",
    # Weights that are shares of all that is eligible.
    "shares-of-all": """
variant shares_of_all(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(memory) {fn = mean, size = 16, stride = 16, fields = k}
  scores = score(q, marks)
  chosen = topk(scores) {k = 2, size = 16, scope = head, eligible = 16 * c <= i, order = newest}
  past = mask(memory) {where = j <= i}
  return attend(q, memory, chosen, past, weights=weights(scores, chosen) {renormalise = false}) {per = chunk}
}
""",
}
"""Name -> text of what has no backward kernels, or none for all of its inputs."""
