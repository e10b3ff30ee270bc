"""Compiles the Triton kernels as their launchers would launch them, for GPUs that are not here.

A launcher runs on meta tensors with its launch recorded instead of run; Triton then specialises and compiles the
recorded arguments for a target. ``python tests/triton_aot.py`` writes tests/budget_triton.json: registers, spills,
shared memory and the widest global load and store of every kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from fastmix import _library

BUDGET = Path(__file__).with_name("budget_triton.json")
TARGETS = (80, 90, 100)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class _Driver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def empty(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    t = torch.empty(shape, dtype=dtype, device="meta")
    return t.contiguous(memory_format=torch.channels_last) if channels_last else t


def labels(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int64)


def soft_target_cases() -> Iterator[tuple[str, Callable[..., object], tuple]]:
    kernels = _library.kernels("soft_target")
    for dtype in SHORT:
        for n, j in ((1024, 1000), (4096, 21841), (128, 100), (64, 32768), (64, 50257)):
            if dtype in (torch.float16, torch.float64) and j not in (1000, 32768):
                continue
            for loss, name in enumerate(("cross_entropy", "kl", "bce")):
                z = empty(n, j, dtype=dtype)
                args = (labels(n, 2), empty(n, 2), empty(n), empty(n), 0.1, -100, loss, 1)
                for grad in ((True, False) if loss == 0 else (True,)):
                    yield (f"{name} {n}x{j} {SHORT[dtype]}{'' if grad else ' loss only'}", kernels.soft_target,
                           (z, *args, grad))
                if j in (1000, 50257) or (j == 21841 and loss == 0):
                    yield (f"{name} dense {n}x{j} {SHORT[dtype]}", kernels.soft_target_dense,
                           (z, empty(n, j), None, 0.0, loss, 1, True))
        yield (f"labels 1024x1000 {SHORT[dtype]}", kernels.soft_target,
               (empty(1024, 1000, dtype=dtype), labels(1024, 1), None, None, None, 0.0, -100, 0, 1, True))
        yield f"scale 1024x1000 {SHORT[dtype]}", kernels.scale_, (empty(1024, 1000, dtype=dtype), empty())


OPERATORS = {"soft_target": soft_target_cases}


def launches(operator: str) -> dict[str, tuple]:
    """case/kernel -> (kernel, arguments, options) of everything that the cases launch."""
    found: dict[str, tuple] = {}
    module = _library.kernels(operator)
    places = [m for m in (module, *(v for v in vars(module).values() if hasattr(v, "launch"))) if hasattr(m, "launch")]
    before = [m.launch for m in places]
    try:
        for case, call, args in OPERATORS[operator]():
            def record(kernel, programs, device, *kernel_args, case=case, **options):
                assert programs > 0
                found[f"{case}/{kernel.fn.__name__}"] = (kernel, kernel_args, options)
            for m in places:
                m.launch = record
            call(*args)
    finally:
        for m, launch in zip(places, before, strict=True):
            m.launch = launch
    return found


def _width(ptx: str, instruction: str) -> int:
    """Bytes of the widest access."""
    widths = [int(count or 1) * int(bits) // 8 for count, bits in
              re.findall(rf"{instruction}\.global(?:\.[a-z_0-9:]+?)*?(?:\.v(\d))?\.b(\d+)", ptx)]
    return max(widths, default=0)


def compile_for(capability: int, kernel, args: tuple, options: dict) -> dict[str, int]:
    before = driver._active  # reading driver.active would ask for a GPU
    driver.set_active(_Driver(capability))
    try:
        compiled = kernel.run(*args, grid=(1,), warmup=True, **options)
    finally:
        driver._active = before
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True,
                                check=True).stdout
    stack, registers = (int(re.search(rf"{word}:(\d+)", report).group(1)) for word in ("STACK", "REG"))
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared,
            "warps": compiled.metadata.num_warps, "load": _width(compiled.asm["ptx"], "ld"),
            "store": _width(compiled.asm["ptx"], "st")}


def main() -> None:
    names = sys.argv[1:] or list(OPERATORS)
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    budget["triton"] = triton.__version__
    for operator in names:
        budget[operator] = {f"{key}/sm_{capability}": compile_for(capability, *launch)
                            for key, launch in launches(operator).items() for capability in TARGETS}
    lines = []
    for operator, entries in budget.items():
        body = json.dumps(entries) if operator == "triton" else \
            "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items()) + "\n}"
        lines.append(f"{json.dumps(operator)}: {body}")
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
