"""Attention over chosen chunks: three loop orders forward, the walks backward, schedules."""
