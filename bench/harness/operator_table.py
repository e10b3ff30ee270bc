"""The Markdown of docs/operators.md: what every operator computes, and the files that it has."""

from __future__ import annotations

import os
from pathlib import Path

from fastmix.app.results.render import markdown
from fastmix.ops.dispatch import CUDA_OPERATORS, FORMS, OPERATORS, TRITON_OPERATORS

# Operator -> the equation in short, and where it stands.
EQUATIONS = {
    "soft_target": ("`T lse(z) - base sum z - sum_k w_k z[i_k]`, gradient `T softmax(z) - t` in the same pass",
                    "K-image mixing, Eq. 8; Soft Augmentation, Eq. 4-6 and 12-15"),
    "blend": ("`out[n] = sum_k w[n,k] x[i[n,k]]`", "K-image mixing, Eq. 2"),
    "paste": ("every pixel from the last box that it is in", "K-image mixing, Eq. 4-5"),
    "patch_mix": ("patches of two images, by their saliency masks", "R-Mix, Eq. 5-7"),
    "view": ("bytes to flipped, cropped, normalised and mixed images in one pass", "-"),
    "saliency": ("map, percentile mask and peak of an input gradient", "R-Mix, Eq. 2-4"),
    "crop": ("windows moved by whole pixels, or resized bilinearly", "Soft Augmentation, Sec. 4.1 and B.3"),
    "covariance": ("mean and covariance of every class, updated in place: full, diagonal, shared", "ISDA, Eq. 1-3"),
    "isda": ("`z + strength/2 (w_j - w_y)^T Sigma_y (w_j - w_y)`, and the consistency bound", "ISDA, Eq. 7 and 15"),
    "plan": ("partners, shares, boxes and label weights from random bits", "K-image mixing, Eq. 3"),
}


def _backends(op: str) -> dict[str, str]:
    """Backend -> its file."""
    files = {"reference": f"fastmix/reference/{op}.py", "cpu": f"csrc/cpu/{op}.cpp"}
    if op in TRITON_OPERATORS:
        files["triton"] = f"kernels/{op}.py"
    if op in CUDA_OPERATORS:
        files["cuda"] = f"csrc/cuda/{op}.cuh"
    return files


def operators(root: Path, folder: Path) -> str:
    """root: of the checkout; folder: of the page, from which files are linked."""
    def link(text: str, file: str) -> str:
        return f"[{text}]({Path(os.path.relpath(root / file, folder)).as_posix()})"

    rows = [["operator", "what it computes", "source", "backends", "more"]]
    for op in OPERATORS:
        what, source = EQUATIONS[op]
        backends = [link(name, file) + (f" ({', '.join(FORMS[op, name])})" if (op, name) in FORMS else "")
                    for name, file in _backends(op).items()]
        more = [link("function", f"fastmix/ops/{op}.py"), link("test", f"tests/ops/test_{op}.py"),
                link("benchmark", f"bench/cases/{op}.py")]
        rows.append([f"`{op}`", what, source, ", ".join(backends), ", ".join(more)])
    return markdown(rows)
