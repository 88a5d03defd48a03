"""Compiled operators: targets, launching, caches and environment."""
