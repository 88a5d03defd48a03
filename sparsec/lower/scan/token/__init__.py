"""The token recurrence: one program per state walks over its tokens in order, ``gradient`` back over them.

``visit`` is what one token brings to a state, ``sums`` what programs hold shares of; ``step`` and ``one_token`` are the
steps of decoding, which put a state back where it came from.
"""
