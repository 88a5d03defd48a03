"""The plan: a graph cut into kernels and the buffers between them.

Matchers of a subject lie in its folder with their specs and costs (``*_specs``, ``*_cost``) and adjoints
(``*_gradient``): ``attention``, ``selection``, ``states``, ``maps``, and ``packed`` for packed calls. Here is what they
share:

- the frame: ``build`` ``planner`` ``plan`` ``memory`` ``sizes`` ``precision`` ``honours``;
- gradients: ``gradient`` ``adjoint`` ``pull`` ``added``, and of every softmax ``row_dot``;
- specs of attention, which the others build on: ``specs`` ``grad_specs``;
- costs of all: ``cost`` ``cost_terms`` ``grad_cost`` ``reach``.
"""
