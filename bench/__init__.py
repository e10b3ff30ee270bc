"""The benchmarks, installed as `fastmix.bench`: `python -m fastmix bench --help`.

Here are the commands. `cases` says what is timed: a new operator adds cases/<op>.py with `cases() -> list[Case]`.
`harness` holds what the commands share, `device` what only a GPU can answer.
"""
