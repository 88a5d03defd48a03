"""Contract tests and strategies that a back end or a new variant can inherit, and ``fla_suite``, a plugin of pytest.

- ``inputs``: designs, numbers, layouts and schedules to run;
- ``whole``: whole variants from declaration to gradients, ``kernels``: one kernel against fp64;
- ``tile``: tile programs that every back end must run;
- ``mistakes``: what checks must find;
- ``triton``: Triton without a GPU, in processes of its own.
"""
