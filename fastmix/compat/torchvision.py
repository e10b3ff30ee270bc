"""torchvision's MixUp and CutMix on fastmix's kernels (torchvision 0.28): change ``torchvision.transforms.v2``.

Source: torchvision/transforms/v2/_augment.py of torchvision 0.28.0, whose results these reproduce.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._pairs import blended, is_mixed_here, mixed_labels, pasted

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("fastmix.compat.torchvision stands for classes of torchvision and needs it: "
                              f"{error}; pip install torchvision", name=error.name) from error

__all__ = ["CutMix", "MixUp"]


class _Pairs:
    """What the two share: images are mixed by a kernel, labels become what torchvision makes of them."""

    num_classes: int | None
    sparse: bool

    def __init__(self, *args: Any, sparse: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sparse = sparse

    def _mixed(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if inpt is params["labels"] or not isinstance(inpt, Tensor):
            return super().transform(inpt, params)  # type: ignore[misc]
        x = inpt.as_subclass(Tensor)
        if not is_mixed_here(x, 5 if isinstance(inpt, tv_tensors.Video) else 4):
            return super().transform(inpt, params)  # type: ignore[misc]
        self._check_image_or_video(inpt, batch_size=params["batch_size"])  # type: ignore[attr-defined]
        mixed = self._mixed(x, params)
        return mixed if type(inpt) is Tensor else tv_tensors.wrap(mixed, like=inpt)

    def _mixup_label(self, label: Tensor, *, lam: float) -> Any:
        if label.ndim != 1:
            return super()._mixup_label(label, lam=lam)  # type: ignore[misc]
        assert self.num_classes is not None  # forward raises otherwise
        return mixed_labels(label, "roll", lam, 0.0, self.num_classes, self.sparse)


class MixUp(_Pairs, v2.MixUp):  # type: ignore[misc]
    """``torchvision.transforms.v2.MixUp(alpha=1.0, num_classes=None, labels_getter="default")``.

    Draws are torchvision's (torch's generator), so a seed mixes the same. With ``sparse=True`` labels (N,) become a
    `SoftTarget` instead of an (N, J) matrix. Images (N, C, H, W) and videos (N, T, C, H, W) of floats.
    Source: torchvision 0.28.0, transforms/v2/_augment.py; refined data augmentation Eq. 1.
    """

    def _mixed(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        return blended(x, "roll", params["lam"])


class CutMix(_Pairs, v2.CutMix):  # type: ignore[misc]
    """``torchvision.transforms.v2.CutMix(alpha=1.0, num_classes=None, labels_getter="default")``; as `MixUp`.

    Source: torchvision 0.28.0, transforms/v2/_augment.py; refined data augmentation Eq. 2.
    """

    def _mixed(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        left, top, right, bottom = params["box"]
        box = (top, left, bottom - top, right - left)
        if x.ndim == 4:
            return pasted(x, "roll", box)
        frames = x.flatten(1, 2)  # of a clip all frames alike: their planes side by side
        return pasted(frames, "roll", box).view(x.shape)
