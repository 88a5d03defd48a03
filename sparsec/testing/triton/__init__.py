"""Triton without a GPU: kernels of each kind under its interpreter, each a module to run in a process of its own.

``pace`` makes the interpreter quicker, ``ahead`` compiles named kernels for GPUs that are not there, and
``stub_driver`` stands in for the CUDA driver.
"""
