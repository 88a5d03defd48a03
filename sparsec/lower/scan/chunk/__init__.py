"""Scans chunk by chunk, for GPUs: which scans have this form, the programs of one, and what they share.

- ``form`` says which scans; ``forward`` and ``gradient`` put the programs together;
- forward, in order: ``gates`` ``solve`` ``segments`` ``outputs``; backward: ``back`` ``back_states`` ``back_tokens``;
- shared by programs: ``parts`` ``place`` ``state`` ``blocks`` ``operands``, and ``resets`` where parts meet.
"""
