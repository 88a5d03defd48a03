"""Cases, clocks and peers: sparsec is timed beside them, interleaved in one run, and only where it is right.

`python -m sparsec.benchmarks` times the peers alone; `sparsec bench` passes its own kernels to `run_cases`.
"""
