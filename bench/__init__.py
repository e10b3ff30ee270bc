"""The bench: every operator, shape, backend, peer and floor in one run. `python -m bench --help`.

A new operator adds one file, bench/bench_<op>.py, with `cases() -> list[Case]`.
"""
