"""Matrix states: scans over tokens, by token recurrence or chunk by chunk.

- choice of a form: ``schedules`` ``chunk_form``;
- the token recurrence: ``token`` ``token_grad`` ``token_sum`` ``cell`` ``visit``; steps of decoding ``step``
  ``one_token``;
- chunk by chunk: forward ``chunk`` ``chunk_gates`` ``chunk_solve`` ``chunk_segments`` ``chunk_outputs``, gradients
  ``chunk_grad`` and ``chunk_back*``, and what their programs share ``chunk_parts`` ``chunk_place`` ``chunk_state``
  ``chunk_blocks`` ``operands``;
- banks of several parts: ``runs`` ``chunk_resets``; several writes per token: ``interleaved``;
- mixtures of memories: ``mixture`` ``mixture_grad``; sums over a batch: ``batch_sum``.

``keyed``: decays per key; ``sorted``: tokens of a routed bank part by part.
"""
