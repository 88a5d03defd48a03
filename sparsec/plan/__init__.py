"""The plan: a graph cut into kernels and the buffers between them.

By subject, matchers first, then specs and costs (``*_specs``, ``*_cost``) and adjoints (``gradient_*``):

- the frame: ``build`` ``planner`` ``plan`` ``memory`` ``sizes`` ``precision`` ``honours`` ``pull`` ``gradient``
  ``adjoint`` ``added``; costs of all: ``cost`` ``cost_terms`` ``grad_cost`` ``reach``; specs of attention: ``specs``
  ``grad_specs``;
- attention: ``attend`` ``memories`` ``merge`` ``row_dot``, ``gradient_tiled`` ``_gathered`` ``_merge``;
- selection: ``select`` ``select_set`` ``set_specs`` ``signal`` ``index_*``, ``gradient_select`` ``_signal``;
- states: ``scan*`` ``fenwick*`` ``evict*`` ``mass`` ``mixture*`` ``route*``, ``gradient_scan`` ``_route``;
- rows and maps: ``map*`` ``row_numbers`` ``row_specs`` ``prefix`` ``running_specs``, ``gradient_map`` ``_prefix``;
- packed calls: ``packing`` ``packed_plan``.
"""
