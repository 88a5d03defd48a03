"""Attention over all visible keys, tile by tile: forward, backward, schedules."""
