"""Matrix states: scans over tokens, by token recurrence or chunk by chunk.

- choice of a form: ``schedules``; where a program lies and which columns it holds: ``cell``;
- ``token``: the recurrence, its adjoint, and one step of decoding;
- ``chunk``: products of tiles in a chunk and a state from one to the next; ``keyed``: the same with decays per key;
- banks of several parts: ``runs``, and ``sorted``: tokens of a routed bank part by part;
- several writes per token: ``interleaved``; sums over a batch: ``batch_sum``;
- ``mixture``: weights of memories that queries choose between.
"""
