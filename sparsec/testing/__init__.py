"""Contract tests and strategies that a back end or a new variant can inherit.

By subject:

- designs and inputs to run: ``variants`` ``declared`` ``recurrent`` ``numbers`` ``layouts`` ``styles``
  ``covering`` ``idle``;
- whole variants: ``chain`` ``chain_worker`` ``whole_case`` ``agreement`` ``trained`` ``packed_case`` ``decoding``
  ``benchmark_case`` ``fla_suite``;
- one kernel against fp64: ``tiled_case`` ``gathered_case`` ``selector_case`` ``scan_case`` ``ladder_case``
  ``tiles_seen`` ``scratch``;
- tile programs that every back end must run: ``tile_*``;
- mistakes that checks must find: ``mistakes`` ``mutants`` ``triton_faults``;
- Triton without a GPU, in processes of their own: ``*_interpreter`` ``tiled_worker`` ``interpreter_pace`` ``ahead``
  ``stub_driver``.
"""
