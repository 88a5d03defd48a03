"""Attention: attends over dense memories or lists of chunks, the memories as buffers, merges, and all their adjoints.

Their specs are ``sparsec.plan.specs`` and ``sparsec.plan.grad_specs``, which the other folders build on.
"""
