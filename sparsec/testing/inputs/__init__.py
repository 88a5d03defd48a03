"""What to run: every design with small knobs, layers and recurrences that no preset has, and inputs that provoke.

``numbers`` ``layouts`` and ``styles`` vary values, memory and schedules, ``covering`` pairs them in few cases, and
``idle`` says what a size leaves untested.
"""
