"""A second printing for Hopper: warps with roles, in Gluon."""
