"""Packed calls: where documents that follow one another lie in each buffer, and the plan over such buffers."""
