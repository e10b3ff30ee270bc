"""The mixers: modules that draw a plan for a batch on its device and apply it.

    mixer = fastmix.DCutMix(k=3, alpha=0.2)
    mixed, target = mixer(x, y)               # or plan = mixer.plan(x); plan.apply(x), plan.target(y)
    loss = fastmix.functional.soft_cross_entropy(model(mixed), target)

Nothing here waits for the device: a step with a mixer runs under ``torch.compile(fullgraph=True)`` and in a CUDA graph,
whose replays draw new plans. `mixer_groups.RandomChoice` alone decides on the host.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from . import sampling
from .functional import paste_areas, saliency_mask, saliency_peak
from .ops import _checks as check
from .ops.view import View
from .plans import BlendPlan, CutoutPlan, PastePlan, PatchPlan, Plan, through
from .targets import SoftTarget

MODES = ("batch", "elem")


class Mixer(nn.Module):
    """What all mixers share. A subclass draws in ``_draw(x, saliency, active)``.

    Attributes:
        enabled: bool. False makes every plan the identity. It is a flag on the device that plans read, so switching it
            recompiles and recaptures nothing. The flag follows an eager batch to its device; before a CUDA graph
            capture or torch.compile call ``mixer.to(device)`` (compiled code would copy the flag on every call).
        needs_saliency: whether `plan` wants the input gradient (`fastmix.input_saliency`).

    Args:
        prob: probability that a plan mixes; else it is the identity. Drawn per batch, per sample in mode "elem".
        mode: "batch", one draw for the whole batch, or "elem", one per sample, as in timm; None where a method has
            one way only.
        generator: torch.Generator on the device of the images; None is torch's own. torch.compile(fullgraph=True)
            needs None: dynamo (2.13) cannot pass a generator.

    The state_dict is empty, and ``train()`` / ``eval()`` change nothing.
    """

    needs_saliency = False

    def __init__(self, *, prob: float = 1.0, mode: str | None = None, generator: Generator | None = None) -> None:
        super().__init__()
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"{self._name}: prob is {prob}, want a value in [0, 1]")
        if mode is not None:
            check.choice(self._name, "mode", mode, MODES)
        self.prob, self.mode, self.generator = float(prob), mode, generator
        self._enabled = True
        self.register_buffer("_flag", torch.ones((), dtype=torch.bool), persistent=False)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._enabled = bool(on)  # for reading back without a sync; plans read the flag
        self._flag.fill_(self._enabled)

    def plan(self, x: Tensor, saliency: Tensor | None = None) -> Plan:
        """Draws what to do with a batch.

        Args:
            x: the images (N, C, H, W), or (N, ...) for Mixup and DMixup. Gives shape and device only.
            saliency: d loss / d x, shaped like x, where ``needs_saliency``; ignored elsewhere. May be left out while
                ``enabled`` is False, so that a loop can save the pass.
        Raises: ValueError for shapes, devices and a missing saliency.
        """
        check.tensor(self._name, "x", x)
        if x.ndim == 0:
            raise ValueError(f"{self._name}: x has shape (), want a batch (N, ...)")
        if self.needs_saliency:
            if saliency is None and not self._enabled:
                saliency = torch.zeros((), device=x.device).expand(x.shape)
            if saliency is None:
                raise ValueError(f"{self._name}: saliency is None, want the gradient of the loss with respect to x, "
                                 f"shape {tuple(x.shape)}: fastmix.input_saliency(model, x, y)")
            check.shape(self._name, "saliency", saliency, x.shape, "like x")
            check.same_device(self._name, x=x, saliency=saliency)
        return self._plan(x, saliency, None)

    def forward(self, x: Tensor, y: Tensor | SoftTarget, saliency: Tensor | None = None,
                view: View | None = None) -> tuple[Tensor, SoftTarget]:
        """Mixes a batch.

        Args:
            x: images (N, C, H, W), float32, bfloat16, float16 or float64, any memory format.
            y: (N,) int64 labels, or the SoftTarget of an earlier mixture.
            saliency: as for `plan`; with a view the gradient at ``view.apply(x)``.
            view: x is uint8, and its images are read through this `fastmix.View` in the pass that mixes them.
        Returns: (mixed like x, or with a view of its dtype and memory format; SoftTarget with float32 weights).
        """
        return self.plan(x, saliency).mix(x, y, **through(view))

    def _plan(self, x: Tensor, saliency: Tensor | None, outer: Tensor | None) -> Plan:
        """outer: 0-d bool, whether the mixer around this one is active; None if there is none."""
        active = self._flag_on(x.device)
        if outer is not None:
            active = active & outer
        if self.prob < 1.0:
            shape = x.shape[:1] if self.mode == "elem" else ()
            active = active & sampling.bernoulli(self.prob, shape, x.device, self.generator)
        return self._draw(x, saliency, active)

    def _flag_on(self, device: torch.device) -> Tensor:
        return self._on_device("_flag", "_enabled", device)

    def _on_device(self, name: str, value: str, device: torch.device) -> Tensor:
        """The 0-d buffer `name` on the device of the images. value: the attribute that it mirrors, read only where the
        buffer moves: compiled code would be compiled anew for each value that it has read."""
        buffer = getattr(self, name)
        if buffer.device != device:
            if torch.compiler.is_compiling():  # a tensor made inside a graph must not outlive it
                return buffer.to(device, non_blocking=True)
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"{self._name}: the mixer is on {buffer.device}, images are on {device}: call "
                                   "mixer.to(device), or the mixer once, before the CUDA graph capture")
            buffer = torch.full((), getattr(self, value), dtype=buffer.dtype, device=device)
            setattr(self, name, buffer)
        return buffer

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> Plan:
        """active: 0-d or (N,) bool; where it is False the plan is the identity."""
        raise NotImplementedError

    def _rows(self, x: Tensor) -> int:
        """How many draws a batch takes."""
        return x.shape[0] if self.mode == "elem" else 1

    def _images(self, x: Tensor) -> tuple[int, int]:
        check.ndim(self._name, "x", x, 4)
        return x.shape[2], x.shape[3]

    def _positive(self, **values: float) -> None:
        for name, value in values.items():
            if not 0.0 < value < math.inf:
                raise ValueError(f"{self._name}: {name} is {value}, want a finite number above 0")

    def extra_repr(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_") and value is not None}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if name != "training")


def _partners(x: Tensor, k: int, active: Tensor, generator: Generator | None) -> Tensor:
    """(N, k) int64: the image itself, then k - 1 independent permutations; only itself where not active."""
    own = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    if k == 1:
        return own
    others = sampling.permutations(x.shape[0], k - 1, x.device, generator)
    return torch.cat([own, torch.where(active.unsqueeze(-1), others, own)], 1)


def _shares(phi: Tensor, active: Tensor, rows: int) -> Tensor:
    """phi (N or 1, K) as (rows, K); all weight on the image itself where not active."""
    own = torch.arange(phi.shape[1], device=phi.device) == 0
    return torch.where(active.unsqueeze(-1), phi, own.to(phi.dtype)).expand(rows, -1).contiguous()


def _paste_plan(index: Tensor, boxes: Tensor, size: tuple[int, int], active: Tensor) -> PastePlan:
    """boxes (N, K-1, 4) int32; empty where not active. Labels by the area that can be seen."""
    boxes = boxes * active.view(-1, 1, 1)
    return PastePlan(index, boxes, paste_areas(boxes, size))


class Mixup(Mixer):
    """Weighted sums of two images: ``lam x + (1 - lam) x[partner]``, lam ~ Beta(alpha, alpha).

    The partner is a random permutation of the batch. mode "batch" draws one lam, "elem" one per sample.

    Args: alpha: > 0. prob, mode, generator: see `Mixer`.
    Source: Mixup (Zhang et al. 2018).
    """

    def __init__(self, alpha: float, *, prob: float = 1.0, mode: str = "batch",
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, mode=mode, generator=generator)
        self._positive(alpha=alpha)
        self.alpha = alpha

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> BlendPlan:
        phi = sampling.dirichlet(self._rows(x), 2, self.alpha, x.device, self.generator)
        return BlendPlan(_partners(x, 2, active, self.generator), _shares(phi, active, x.shape[0]))


class CutMix(Mixer):
    """A box of another image pasted onto each image; the label counts the pixels.

    lam ~ Beta(alpha, alpha); the box has side ``int(side * sqrt(1 - lam))`` per axis, is centred uniformly and clipped
    at the border. The partner is a random permutation of the batch. mode "batch" draws one lam and box, "elem" one per
    sample.

    Args: alpha: > 0. prob, mode, generator: see `Mixer`.
    Source: CutMix (Yun et al. 2019).
    """

    def __init__(self, alpha: float = 1.0, *, prob: float = 1.0, mode: str = "batch",
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, mode=mode, generator=generator)
        self._positive(alpha=alpha)
        self.alpha = alpha

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> PastePlan:
        size = self._images(x)
        phi = sampling.dirichlet(self._rows(x), 2, self.alpha, x.device, self.generator)
        # phi[:, 1] is 1 - lam; float64 as in DCutMix, so that the floor is that of the formula.
        scale = phi[:, 1].to(torch.float64).sqrt()
        sides = torch.stack([scale * side for side in size], 1).to(torch.int64)
        boxes = sampling.centred_boxes(sides, size, self.generator).expand(x.shape[0], -1).unsqueeze(1)
        return _paste_plan(_partners(x, 2, active, self.generator), boxes, size, active)


class DMixup(Mixer):
    """Weighted sums of k images with shares phi ~ Dirichlet(alpha, ..., alpha), drawn per sample.

    Image 0 is the sample itself, image j > 0 comes from a permutation of its own. prob is drawn per batch.

    Args: k: images mixed into one, >= 1. alpha: > 0. prob, generator: see `Mixer`.
    Source: K-image mixing Eq. 2.
    """

    def __init__(self, k: int, alpha: float, *, prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(prob=prob, generator=generator)
        check.at_least(self._name, "k", k, 1)
        self._positive(alpha=alpha)
        self.k, self.alpha = k, alpha

    def _phi(self, x: Tensor) -> Tensor:
        return sampling.dirichlet(x.shape[0], self.k, self.alpha, x.device, self.generator)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> Plan:
        return BlendPlan(_partners(x, self.k, active, self.generator), _shares(self._phi(x), active, x.shape[0]))


class DCutMix(DMixup):
    """k images in nested boxes whose areas follow phi ~ Dirichlet(alpha, ..., alpha), by stick breaking.

    Box j lies inside box j - 1, with side ``round(previous side * sqrt(1 - v_j))`` per axis, at a uniform position.
    Every source is the untouched batch, the label counts the visible pixels. prob is drawn per batch.

    Args: as `DMixup`.
    Source: K-image mixing Eq. 3-5.
    """

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> PastePlan:
        size = self._images(x)
        phi, index = self._phi(x), _partners(x, self.k, active, self.generator)
        return _paste_plan(index, self._boxes(phi, size, index, saliency), size, active)

    def _boxes(self, phi: Tensor, size: tuple[int, int], index: Tensor, saliency: Tensor | None) -> Tensor:
        """(N, k-1, 4) int32 nested boxes."""
        return sampling.nested_boxes(phi, size, self.generator)


class SaliencyDCutMix(DCutMix):
    """`DCutMix` whose boxes show what matters of the image they are cut from.

    Box j is centred on the peak of the saliency of the image pasted there (`functional.saliency_peak`) and then moved,
    as little as needed, to lie inside box j - 1. The sides are those of `DCutMix`; the label counts the visible pixels.
    Only the peak of the saliency matters, not its scale.

    Args: as `DMixup`.
    Source: K-image mixing Eq. 3-4 and its supplement, Saliency-DCutMix (the centre, after SaliencyMix); moving a box
        into the one before is our choice, the paper does not say.
    """

    needs_saliency = True

    def _boxes(self, phi: Tensor, size: tuple[int, int], index: Tensor, saliency: Tensor | None) -> Tensor:
        return sampling.peak_boxes(phi, size, saliency_peak(saliency)[index[:, 1:]])


class RMix(Mixer):
    """Two images mixed patch by patch: where only one is salient its patch is taken, elsewhere both are blended.

    A mask holds the patches of an image whose saliency is at or above the q-th percentile: q per image from
    ``linspace(0, 0.99, levels)``, the grid p x p per batch from ``patches``, lam ~ Beta(alpha, alpha) per batch. The
    mask lies on the least common grid of all patches, which must divide the image's sides. prob is drawn per batch.

    Args:
        alpha: > 0; 1.0 for CIFAR, 0.2 for ImageNet.
        patches: the patches per side to choose from.
        levels: number of percentiles.
        pairing: "random", a permutation, or "flip", the batch reversed.
        prob, generator: see `Mixer`.
    Source: R-Mix Eq. 2-7.
    """

    needs_saliency = True

    def __init__(self, alpha: float = 1.0, patches: tuple[int, ...] = (2, 4), levels: int = 10, *,
                 pairing: str = "random", prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(prob=prob, generator=generator)
        self._positive(alpha=alpha)
        check.at_least(self._name, "levels", levels, 1)
        check.choice(self._name, "pairing", pairing, ("random", "flip"))
        if not patches or any(p < 1 for p in patches):
            raise ValueError(f"{self._name}: patches is {patches}, want one or more patches per side, each >= 1")
        self.alpha, self.patches, self.levels, self.pairing = alpha, tuple(patches), levels, pairing

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> PatchPlan:
        size = self._images(x)
        rows, device, generator = x.shape[0], x.device, self.generator
        side = math.lcm(*self.patches)
        if any(length % side for length in size):
            raise ValueError(f"{self._name}: x has images of {size[0]} x {size[1]}, want sides divisible by {side}, "
                             f"the least common multiple of patches {self.patches}")
        q = self._percentiles(rows, device)
        # A mask per grid and a choice between them: the grid is drawn on the device, so no shape may depend on it.
        # Each is taken from the gradient, not from a finer map: exact in ties, NaN and inf, and fewer launches.
        masks = [_upsample(saliency_mask(saliency, (p, p), q), side // p) for p in self.patches]
        mask = masks[0]
        if len(masks) > 1:
            choice = torch.randint(len(masks), (), device=device, generator=generator)
            for i, other in enumerate(masks[1:], start=1):
                mask = torch.where(choice == i, other, mask)
        lam = sampling.dirichlet(1, 2, self.alpha, device, generator)[0, 0]
        if self.pairing == "flip":
            own = torch.arange(rows, device=device)
            index = torch.stack([own, torch.where(active, own.flip(0), own)], 1)
        else:
            index = _partners(x, 2, active, generator)
        return PatchPlan(index, mask, torch.where(active, lam, 1.0))

    def percentiles(self, device: torch.device | None = None) -> Tensor:
        """(levels,) float64: the values that q is chosen from."""
        return torch.linspace(0, 0.99, self.levels, dtype=torch.float64, device=device)

    def _percentiles(self, rows: int, device: torch.device) -> Tensor:
        """q of every image: (rows,) float64, or 0-d for all."""
        level = torch.randint(self.levels, (rows,), device=device, generator=self.generator)
        return self.percentiles(device)[level]


class RLMix(RMix):
    """R-Mix on one fixed grid, whose percentiles a policy chooses: ``mixer(x, y, saliency, q)``.

    Without q they are drawn as in R-Mix. `fastmix.rl` (extra ``rl``) holds the environment and the learning policy.

    Args: as `RMix`; patches: patches per side, one number, since a policy's input has a fixed size.
    Source: R-Mix Sec. 5.2 (p = 8).
    """

    def __init__(self, alpha: float = 1.0, patches: int = 8, levels: int = 10, *, pairing: str = "random",
                 prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(alpha, (patches,), levels, pairing=pairing, prob=prob, generator=generator)
        self._q: Tensor | None = None

    def plan(self, x: Tensor, saliency: Tensor | None = None, q: Tensor | None = None) -> Plan:
        """q: (N,) or 0-d float in [0, 1), the percentile of every image; None draws. Else as `Mixer.plan`."""
        self._q = q
        try:
            return super().plan(x, saliency)
        finally:
            self._q = None

    def forward(self, x: Tensor, y: Tensor | SoftTarget, saliency: Tensor | None = None,
                q: Tensor | None = None) -> tuple[Tensor, SoftTarget]:
        return self.plan(x, saliency, q).mix(x, y)

    def _percentiles(self, rows: int, device: torch.device) -> Tensor:
        return super()._percentiles(rows, device) if self._q is None else self._q


def _upsample(mask: Tensor, times: int) -> Tensor:
    """(N, p, p) -> (N, p * times, p * times) by repetition."""
    if times == 1:
        return mask
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


class Cutout(Mixer):
    """A square of zeros at a uniform position, clipped at the border; labels unchanged.

    Args:
        length: side of the square in pixels, >= 0.
        mode: "elem" (default), a position per sample, or "batch", one for all. prob, generator: see `Mixer`.
    Source: Cutout (DeVries and Taylor 2017).
    """

    def __init__(self, length: int, *, prob: float = 1.0, mode: str = "elem",
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, mode=mode, generator=generator)
        check.at_least(self._name, "length", length, 0)
        self.length = length

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> CutoutPlan:
        sides = torch.full((self._rows(x), 2), self.length, dtype=torch.int64, device=x.device)
        boxes = sampling.centred_boxes(sides, self._images(x), self.generator)
        return CutoutPlan(boxes.expand(x.shape[0], -1).unsqueeze(1) * active.view(-1, 1, 1))
