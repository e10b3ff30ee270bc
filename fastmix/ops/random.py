"""Random numbers on a device, from torch's own generator or the caller's: the one place of the library that draws them.

Every function takes ``generator``, on the device of the numbers; None is torch's own. Dtypes are named here, so that a
draw does not depend on ``torch.set_default_dtype``.

* **torch.compile** needs None: dynamo (2.13) has no proxy for a generator. The keyword is then left out of the call:
  the overload that takes it has no symbolic sizes.
* **DataLoader workers** hold copies of a generator, by fork or by pickle, all in the same state. In a worker a
  generator is therefore seeded anew at its first draw, from its own seed and the worker's, which torch draws for every
  worker and every epoch. (Persistent workers keep theirs, and go on with it.)
* **CUDA graphs** replay a generator's numbers unless the graph knows it: torch's own is known, any other has to be
  registered by ``graph.register_generator_state(generator)`` before the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import get_worker_info

Shape = Sequence[int]

# In a worker process: id of a generator -> the generator (which keeps the id its own) and the worker's seed.
_in_worker: dict[int, tuple[Generator, int]] = {}


def uniform(shape: Shape, device: torch.device, generator: Generator | None = None,
            dtype: torch.dtype = torch.float32) -> Tensor:
    """In [0, 1)."""
    return _drawn(torch.rand, shape, generator=generator, dtype=dtype, device=device)


def normal(shape: Shape, device: torch.device, generator: Generator | None = None,
           dtype: torch.dtype = torch.float32) -> Tensor:
    """Of mean 0 and deviation 1."""
    return _drawn(torch.randn, shape, generator=generator, dtype=dtype, device=device)


def integers(low: int, high: int, shape: Shape, device: torch.device, generator: Generator | None = None) -> Tensor:
    """int64 in [low, high)."""
    return _drawn(torch.randint, low, high, shape, generator=generator, device=device)


def random_bits(number: int, device: torch.device, generator: Generator | None = None) -> Tensor:
    """(number,) int64 in [0, 2^63 - 1): keys of permutations, and uniform numbers of 53 bits.

    Not float uniforms: their ties would favour some permutations, and Inductor gives them 24 random bits in float64
    too (measured, torch 2.13).
    """
    if generator is None:  # drawn for every plan: without the calls in between
        return torch.randint(0, 2**63 - 1, (number,), device=device)
    return integers(0, 2**63 - 1, (number,), device, generator)


def gamma(shape: Shape, concentration: float, device: torch.device, generator: Generator | None = None) -> Tensor:
    """float32 gamma variates of scale 1."""
    alpha = torch.full(shape, concentration, device=device, dtype=torch.float32)
    return _drawn(torch._standard_gamma, alpha, generator=generator)


def choice(weights: Sequence[float], generator: Generator | None = None) -> int:
    """The place of one of weights, drawn in their proportion on the host."""
    table = torch.tensor(weights, dtype=torch.float64, device="cpu")
    return int(_drawn(torch.multinomial, table, 1, generator=generator))


def _drawn(draw: Callable[..., Tensor], *args: Any, generator: Generator | None, **options: Any) -> Tensor:
    if generator is None:
        return draw(*args, **options)
    _seed_in_worker(generator)
    try:
        return draw(*args, generator=generator, **options)
    except RuntimeError as error:
        if generator.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph is being captured that does not know the generator: every replay would "
                               "draw the same numbers; want graph.register_generator_state(generator) before the "
                               "capture, or no generator (torch's own is known to every graph)") from error
        raise


def _seed_in_worker(generator: Generator) -> None:
    info = get_worker_info()
    if info is None:
        return
    known = _in_worker.get(id(generator))
    if known is None or known[1] != info.seed:
        _in_worker[id(generator)] = generator, info.seed
        generator.manual_seed(_mixed(generator.initial_seed(), info.seed))


def _mixed(*seeds: int) -> int:
    """One seed of several, by the finaliser of SplitMix64 (Steele et al. 2014): close seeds give unrelated ones."""
    mask, state = 2**64 - 1, 0
    for seed in seeds:
        state = (state + seed + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
