"""Repeated calls in C++: recognised, allocated and launched without Python in between; built on first use."""
