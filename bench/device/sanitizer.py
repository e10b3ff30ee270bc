"""One small case of every CUDA kernel, for compute-sanitizer: `python -m fastmix.bench.device.sanitizer`.

The C++/CUDA backend and, where it has a kernel, Triton: forward and backward, packs and odd sizes.
"""

from __future__ import annotations

import sys

import torch

import fastmix
import fastmix.functional as F
from fastmix import ISDACovariance
from fastmix.ops import dispatch


def images(dtype: torch.dtype, size: tuple[int, int], channels_last: bool) -> torch.Tensor:
    x = torch.randn(6, 3, *size, device="cuda").to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def isda(name: str) -> int:
    """Covariances and augmented logits of rows and pixels, the kinds that this backend serves."""
    count, gpu = 0, {"device": "cuda"}
    for kind in ("full", "diag", "shared", "identity"):
        if dispatch.why_not("isda", name, "cuda", kind) is not None:
            continue
        for shape, labels in (((9, 70), (9,)), ((2, 7, 9, 5), (2, 9, 5))):
            j, a = shape[1], 37
            y = torch.randint(0, j, labels, **gpu)
            covariance = ISDACovariance(j, a, kind, device="cuda")
            if dispatch.why_not("covariance", name, "cuda") is None:
                covariance.update(torch.randn(shape[0], a, *shape[2:], **gpu), y)
            z, w = torch.randn(shape, **gpu).requires_grad_(), torch.randn(j, a, **gpu).requires_grad_()
            out = F.isda_logits(z, w, covariance.cov, y, 0.5, kind=kind)
            torch.autograd.grad(out.sum(), (z, w))
            count += 1
    return count


def run(name: str, small: bool) -> int:
    """Every operator that this backend serves; how many cases ran. small: what a sanitizer gets through in time."""
    count = isda(name) if dispatch.why_not("isda", name, "cuda") is None else 0
    gpu = {"device": "cuda"}

    def served(op: str) -> bool:
        return dispatch.why_not(op, name, "cuda") is None

    for dtype in (torch.float32, torch.bfloat16):
        for size, grid in (((16, 32), (4, 4)), ((7, 9), (7, 3)), ((64, 96), (32, 48)))[:2 if small else 3]:
            for channels_last in (False, True):
                x = images(dtype, size, channels_last).requires_grad_()
                index, lam = torch.randint(0, 6, (6, 3), **gpu), torch.rand(6, **gpu)
                boxes = torch.randint(-4, 12, (6, 2, 4), dtype=torch.int32, **gpu)
                mask = torch.rand(6, *grid, **gpu) < 0.5
                outputs = []
                if served("paste"):
                    outputs.append(F.paste(x, index, boxes))
                if served("blend"):
                    outputs.append(F.blend(x, index, torch.rand(6, 3, **gpu)))
                if served("patch_mix"):
                    outputs.append(F.patch_mix(x, index[:, 0], mask, lam)[0])
                if served("view"):
                    seen = x.detach().clamp(0, 1).mul(255).to(torch.uint8)
                    view = fastmix.View.draw(seen, torch.full((3,), 0.5, **gpu), torch.full((3,), 0.25, **gpu), pad=3,
                                             out_dtype=dtype)
                    view.apply(seen), F.paste(seen, index, boxes, view=view)
                    F.blend(seen, index, torch.rand(6, 3, **gpu), view=view)
                    F.patch_mix(seen, index[:, 0], mask, lam, view=view._replace(memory_format=torch.channels_last))
                    count += 4
                if served("crop"):
                    box = 20 * torch.rand(6, 4, **gpu) - 4
                    outputs.append(F.crop(x, torch.randint(-9, 9, (6, 2), **gpu), fill=torch.rand(6, 3, **gpu)))
                    outputs.append(F.resized_crop(x, box, size, fill=0.5))
                if outputs:
                    torch.autograd.grad(sum(out.float().sum() for out in outputs), x)
                if served("saliency"):
                    F.saliency_map(x, grid), F.saliency_mask(x, grid, lam), F.saliency_peak(x)
                count += len(outputs) + 3 * served("saliency")
        for classes in (10, 1001, 9001, 40001)[:3 if small else 4]:
            if not served("soft_target"):
                continue
            z = torch.randn(12, classes, **gpu).to(dtype).requires_grad_()
            target = fastmix.SoftTarget(torch.randint(0, classes, (12, 3), **gpu), torch.rand(12, 3, **gpu))
            for loss in (F.soft_cross_entropy, F.soft_kl, F.soft_bce):
                for t in (target, torch.rand(12, classes, **gpu)):
                    torch.autograd.grad(loss(z, t) * 2, z)
                    count += 1
    if served("saliency") and not small:
        for cells in (10, 30, 100, 130):
            F.percentile_mask(torch.rand(2, cells, cells, **gpu), torch.tensor(0.7, **gpu))
            count += 1
    return count


def main() -> None:
    for name in ("cuda", "triton"):
        reason = dispatch.why_not("paste", name, "cuda")
        if reason is not None:
            print(f"{name}: {reason}")
            continue
        with fastmix.backend(name):
            count = run(name, "--small" in sys.argv)
        torch.cuda.synchronize()
        print(f"{name}: {count} cases ran")


if __name__ == "__main__":
    main()
