"""Soft labels without the (N, J) matrix: a few (class, weight) pairs and one common base value per row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from .ops import checks as check
from .ops import memory
from .reference._common import in_vmap

# The label that counts nothing, as in torch.
IGNORED = -100


@dataclass(slots=True, eq=False)
class SoftTarget:
    """A batch of soft labels: ``t[n, j] = base[n] + sum_k weight[n, k] * [index[n, k] == j]``.

    Fields:
        index: (N, K) int64 class indices; a class may appear twice in a row, its weights then add. A slot that holds
            the ignored label (-100, or a loss's ``ignore_index``) counts nothing, and neither does a row of such slots.
        weight: (N, K) float32, whatever the dtype of images and logits.
        base: (N,) float32 added to every class, or None for 0.
    Of pixels: index and weight (N, ..., K), base (N, ...).

    By rows: ``len(t)`` is N, ``t[:4]``, ``t[mask]`` and ``t[indices]`` are the targets of these rows, ``torch.cat([t,
    u])`` has the rows of both. ``index, weight, base = t`` takes the fields apart. A pytree: it passes through
    ``torch.compile``, ``torch.export``, DataLoader workers and ``pickle``. The (N, J) matrix is built by :meth:`dense`
    only.
    Source: K-image mixing, the label l_c of Eq. 6; refined data augmentation Eq. 1-2; base: Soft Augmentation Eq. 4.
    """

    index: Tensor
    weight: Tensor
    base: Tensor | None = None

    @classmethod
    def from_labels(cls, y: Tensor) -> SoftTarget:
        """Hard labels y (N,), or (N, ...) of pixels, int64, as a target of weight one."""
        check.tensor("SoftTarget.from_labels", "y", y)
        check.dtype("SoftTarget.from_labels", "y", y, torch.int64)
        if y.ndim == 0:
            raise ValueError("SoftTarget.from_labels: y has shape (), want labels (N,) or (N, ...)")
        return cls(y.unsqueeze(-1), torch.ones((*y.shape, 1), dtype=torch.float32, device=y.device))

    @classmethod
    def from_confidence(cls, y: Tensor, p: Tensor, num_classes: int) -> SoftTarget:
        """Class y keeps p, every other class (1 - p) / (J - 1).

        Args:
            y: (N,) int64 labels.
            p: (N,) float confidences in [0, 1].
            num_classes: J; at J = 1 there is no other class and the target is p itself.
        Source: Soft Augmentation Eq. 4, written out before Eq. 15.
        """
        op = "SoftTarget.from_confidence"
        check.ndim(op, "y", y, 1)
        check.dtype(op, "y", y, torch.int64)
        check.shape(op, "p", p, (y.shape[0],), "(N,) like y")
        check.same_device(op, y=y, p=p)
        check.at_least(op, "num_classes", num_classes, 1)
        p = p.to(torch.float32)
        if num_classes == 1:
            return cls(y.unsqueeze(1), p.unsqueeze(1))
        base = (1 - p) / (num_classes - 1)
        return cls(y.unsqueeze(1), (p - base).unsqueeze(1), base)

    @classmethod
    def _of_fields(cls, op: str, fields: tuple[Any, ...]) -> SoftTarget:
        """(index, weight) or (index, weight, base), as code without this class passes them on."""
        if len(fields) not in (2, 3) or not all(isinstance(field, Tensor) for field in fields[:2]) or not (
                len(fields) == 2 or fields[2] is None or isinstance(fields[2], Tensor)):
            raise TypeError(f"{op}: target is a tuple of {', '.join(type(field).__name__ for field in fields)}, want "
                            "(index, weight) or (index, weight, base), tensors")
        return cls(*fields)

    # ------------------------------------------------------------ rows

    def __len__(self) -> int:
        return self.index.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """The fields, for ``index, weight, base = target``."""
        return iter((self.index, self.weight, self.base))

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> SoftTarget:
        """The targets of some rows: a slice, a mask (N,) bool, or their numbers. TypeError, IndexError for others."""
        if isinstance(rows, int) or (isinstance(rows, Tensor) and rows.ndim == 0):
            raise TypeError("SoftTarget: rows is a single number, want a slice (t[3:4]), a mask or several numbers; "
                            "fields have names (t.index)")
        if torch.compiler.is_compiling():
            return self._map(lambda field: field[rows])
        want = f"a slice, a mask (N,) bool or numbers of {len(self)} rows"
        if isinstance(rows, tuple):
            rows = list(rows)  # of rows, not one of each dimension
        if not isinstance(rows, (slice, list, np.ndarray, Tensor)):
            raise TypeError(f"SoftTarget: rows is {check.shown(rows)}, want {want}")
        try:
            return self._map(lambda field: field[rows])
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            kind = IndexError if isinstance(error, IndexError) else TypeError
            raise kind(f"SoftTarget: rows is {check.shown(rows)}, want {want}") from None

    def __eq__(self, other: object) -> bool:
        """Whether the fields are equal, as ``torch.equal`` says; waits for the device."""
        if not isinstance(other, SoftTarget):
            return NotImplemented
        for target in (self, other):
            check_target("SoftTarget ==", target)
        return all(a is b is None or (a is not None and b is not None and torch.equal(a, b))
                   for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of all that is compared by values that may change

    def _replace(self, **changes: Any) -> SoftTarget:
        """The target with other fields, as a NamedTuple has it."""
        return replace(self, **changes)

    @staticmethod
    def cat(targets: Sequence[SoftTarget]) -> SoftTarget:
        """The rows of several targets, one after the other; ``torch.cat(targets)`` is the same.

        Rows with fewer classes than the longest repeat their first with weight 0; a missing base is 0.
        """
        op = "SoftTarget.cat"
        if not isinstance(targets, (list, tuple)) or not targets or not all(isinstance(t, SoftTarget) for t in targets):
            raise TypeError(f"{op}: targets is {check.shown(targets)}, want one or more SoftTargets in a list")
        for i, target in enumerate(targets):
            check_target(op, target, f"targets[{i}].")
            check.same_device(op, **{"targets[0]": targets[0].index, f"targets[{i}]": target.index})
            if target.index.shape[1:-1] != targets[0].index.shape[1:-1]:
                raise ValueError(f"{op}: targets[{i}].index has shape {tuple(target.index.shape)}, want (N, ..., K) "
                                 f"like {tuple(targets[0].index.shape)} of targets[0]")
        most = max(t.index.shape[-1] for t in targets)
        filled = [t if t.index.shape[-1] == most else t._padded(most) for t in targets]
        base = None
        if any(t.base is not None for t in targets):
            base = torch.cat([torch.zeros_like(t.weight[..., 0]) if t.base is None else t.base for t in targets])
        return SoftTarget(torch.cat([t.index for t in filled]), torch.cat([t.weight for t in filled]), base)

    def _padded(self, size: int) -> SoftTarget:
        missing = size - self.index.shape[-1]
        again = self.index[..., :1].expand(*self.index.shape[:-1], missing)
        return SoftTarget(torch.cat([self.index, again], -1),
                          torch.nn.functional.pad(self.weight, (0, missing)), self.base)

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """``torch.cat`` and ``torch.concat`` by rows; ``torch.equal`` compares the fields."""
        options = dict(kwargs or {})
        if function is torch.equal and len(args) == 2 and not options:
            return args[0] == args[1]
        if function in (torch.cat, torch.concat, torch.concatenate) and len(args) <= 2:
            targets = args[0] if args else options.pop("tensors")
            dim = args[1] if len(args) == 2 else options.pop("dim", 0)
            if dim != 0 or options:
                raise ValueError("torch.cat of SoftTargets: want dim 0, the rows, and no other options")
            return cls.cat(targets)
        return NotImplemented

    # ------------------------------------------------------------ what a row says

    def dense(self, num_classes: int) -> Tensor:
        """The (N, J) float32 matrix, (N, J, ...) of pixels. Indices outside [0, J), as the ignored label, match no
        class. ValueError for more classes than half of the memory has room for."""
        op = "SoftTarget.dense"
        check_target(op, self)
        num_classes = check.at_least(op, "num_classes", num_classes, 0)
        index, weight, base = self.index, self.weight, self.base
        each = 8 * max(1, math.prod(index.shape[:-1]))
        memory.check(op, "num_classes", num_classes, each, "a dense matrix", index.device)
        size = (*index.shape[:-1], num_classes)
        if base is None:
            out = torch.zeros(size, dtype=torch.float32, device=index.device)
        else:
            out = base.to(torch.float32).unsqueeze(-1).expand(size).clone(memory_format=torch.contiguous_format)
        if num_classes > 0:
            # What matches no class adds 0 to one.
            known = index.clamp(0, num_classes - 1)
            weight = torch.where(known == index, weight, 0.0).to(torch.float32)
            add = torch.scatter_add if in_vmap() else Tensor.scatter_add_
            out = add(out, -1, known, weight)
        return out if out.ndim == 2 else out.movedim(-1, 1)

    def confidence(self) -> Tensor:
        """``weight.sum(-1) + base``, (N,) float32: 1 for labels and their mixtures, p where `from_confidence` made it.

        Source: Soft Augmentation Eq. 4 and 7, p.
        """
        check_target("SoftTarget.confidence", self)
        named = self.weight.sum(-1)
        return named if self.base is None else named + self.base

    def counted_share(self, ignore_index: int = IGNORED) -> Tensor:
        """What part of a row's weight is on slots that count: (N,) float32, 1 without ignored slots, 0 without others.
        """
        op = "SoftTarget.counted_share"
        check_target(op, self)
        counts = self.index != check.integer(op, "ignore_index", ignore_index)
        total = self.weight.sum(-1)
        kept = torch.where(counts, self.weight, 0.0).sum(-1)
        share = torch.where(total == 0, counts.to(torch.float32).mean(-1), kept / torch.where(total == 0, 1.0, total))
        return torch.where(counts.all(-1), 1.0, share)

    def hard(self, ignore_index: int = IGNORED) -> Tensor:
        """The class of largest total weight, (N,) int64; the smallest class on ties, as ``dense(J).argmax(1)``.

        Ignored slots do not take part; a row without others gives ignore_index.
        """
        op = "SoftTarget.hard"
        check_target(op, self)
        index, ignore_index = self.index, check.integer(op, "ignore_index", ignore_index)
        counts = index != ignore_index
        weight = torch.where(counts, self.weight.to(torch.float32), 0.0)
        same = index.unsqueeze(-1) == index.unsqueeze(-2)
        total = (same * weight.unsqueeze(-2)).sum(-1)
        # A class that is not named has total 0, which wins where every named one is negative (p below chance).
        size = index.shape[-1]
        candidates = torch.arange(size + 1, device=index.device)
        named = (index.unsqueeze(-2) == candidates.view(-1, 1)).any(-1)
        unnamed = named.to(torch.int8).argmin(-1, keepdim=True)
        big = torch.iinfo(torch.int64).max
        classes = torch.cat([torch.where(counts, index, big), unnamed], -1)
        total = torch.cat([torch.where(counts, total, -torch.inf), torch.zeros_like(total[..., :1])], -1)
        best = total.max(-1, keepdim=True).values
        found = torch.where(total == best, classes, big).amin(-1)
        return torch.where(counts.any(-1), found, ignore_index)

    def smooth(self, eps: float | Tensor, num_classes: int, ignore_index: int = IGNORED) -> SoftTarget:
        """Label smoothing: ``(1 - eps) * t + eps / J``; where slots are ignored, eps / J times the share of the others.

        Source: Szegedy et al. 2016. Soft Augmentation Eq. 3 takes alpha from the label's class and gives it to the
        others alone: for labels the same at ``alpha = eps (J - 1) / J``, or ``from_confidence(y, 1 - alpha, J)``.
        """
        op = "SoftTarget.smooth"
        check_target(op, self)
        if isinstance(eps, Tensor):
            check.shape(op, "eps", eps, (), "0-d, or a number")
            check.dtype(op, "eps", eps, *check.FLOATS)
            check.same_device(op, index=self.index, eps=eps if eps.device.type != "cpu" else None)
        else:
            eps = check.share(op, "eps", eps)
        check.at_least(op, "num_classes", num_classes, 1)
        ignore_index = check.integer(op, "ignore_index", ignore_index)
        base = 0.0 if self.base is None else self.base * (1 - eps)
        return SoftTarget(self.index, self.weight * (1 - eps),
                          base + self.counted_share(ignore_index) * (eps / num_classes))

    # ------------------------------------------------------------ devices

    @property
    def device(self) -> torch.device:
        """Where the fields are."""
        check_target("SoftTarget.device", self)
        return self.index.device

    @property
    def shape(self) -> torch.Size:
        """Of the rows: (N,), of pixels (N, ...)."""
        check_target("SoftTarget.shape", self)
        return self.index.shape[:-1]

    @overload
    def size(self) -> torch.Size: ...

    @overload
    def size(self, dim: int) -> int: ...

    def size(self, dim: int | None = None) -> torch.Size | int:
        """`shape`, or its entry."""
        shape = self.shape
        if dim is None:
            return shape
        dim = check.integer("SoftTarget.size", "dim", dim)
        if not -len(shape) <= dim < len(shape):
            raise IndexError(f"SoftTarget.size: dim is {dim}, want {-len(shape)} to {len(shape) - 1}")
        return shape[dim]

    def to(self, device: torch.device | str | int | torch.dtype | Tensor | None = None,
           dtype: torch.dtype | bool | None = None, non_blocking: bool = False) -> SoftTarget:
        """The same target on another device; arguments as of ``Tensor.to``.

        A dtype changes nothing: indices are int64, weights float32, as what casts a whole batch has to leave them.
        """
        check_target("SoftTarget.to", self)
        if isinstance(dtype, bool):  # to(device, non_blocking) of earlier versions
            non_blocking = dtype
        if isinstance(device, Tensor):
            device = device.device
        if device is None or isinstance(device, torch.dtype):
            return self
        return self._map(lambda field: field.to(device, non_blocking=non_blocking))

    def cpu(self) -> SoftTarget:
        """The same target in the host's memory."""
        check_target("SoftTarget.cpu", self)
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int | None = None, non_blocking: bool = False) -> SoftTarget:
        """The same target on a GPU; None: the current one. RuntimeError where there is none."""
        check_target("SoftTarget.cuda", self)
        if not torch.cuda.is_available():
            raise RuntimeError("SoftTarget.cuda: there is no CUDA device here; t.to(device) takes others")
        return self._map(lambda field: field.cuda(device, non_blocking=non_blocking))

    def split(self, rows: int | Sequence[int]) -> tuple[SoftTarget, ...]:
        """Targets of so many rows each, or of these numbers, which sum to N, as of ``Tensor.split``."""
        op = "SoftTarget.split"
        check_target(op, self)
        if isinstance(rows, (list, tuple)):
            rows = [check.at_least(op, "rows", each, 0) for each in rows]
            if sum(rows) != len(self):
                raise ValueError(f"{op}: rows sum to {sum(rows)}, want {len(self)}")
        else:
            rows = check.at_least(op, "rows", rows, 1)
        parts = [None if field is None else field.split(rows) for field in self]
        assert parts[0] is not None and parts[1] is not None
        return tuple(SoftTarget(index, weight, None if parts[2] is None else parts[2][n])
                     for n, (index, weight) in enumerate(zip(parts[0], parts[1], strict=True)))

    def __reduce__(self) -> tuple[Any, ...]:
        return SoftTarget, (self.index, self.weight, self.base)

    def pin_memory(self) -> SoftTarget:
        """The same target in page-locked memory: what a DataLoader with ``pin_memory=True`` calls."""
        check_target("SoftTarget.pin_memory", self)
        return self._map(lambda field: field.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> SoftTarget:
        return SoftTarget(change(self.index), change(self.weight), None if self.base is None else change(self.base))


def check_target(op: str, target: SoftTarget, prefix: str = "") -> None:
    """Raises ValueError or TypeError, naming ``op`` and the field behind ``prefix``, for fields that are no target."""
    index, weight, base = target.index, target.weight, target.base
    check.tensor(op, f"{prefix}index", index)
    if index.ndim < 2:
        raise ValueError(f"{op}: {prefix}index has shape {tuple(index.shape)}, want (N, K) or (N, ..., K)")
    check.dtype(op, f"{prefix}index", index, torch.int64)
    check.shape(op, f"{prefix}weight", weight, index.shape, "(N, K) like index")
    check.dtype(op, f"{prefix}weight", weight, *check.FLOATS)
    if base is not None:
        check.shape(op, f"{prefix}base", base, index.shape[:-1], "one for each row")
        check.dtype(op, f"{prefix}base", base, *check.FLOATS)
    check.same_device(op, **{f"{prefix}index": index, f"{prefix}weight": weight, f"{prefix}base": base})


_FIELDS = ("index", "weight", "base")
pytree.register_pytree_node(
    SoftTarget, lambda t: ([t.index, t.weight, t.base], None), lambda fields, _: SoftTarget(*fields),
    serialized_type_name="fastmix.SoftTarget",
    flatten_with_keys_fn=lambda t: ([(pytree.GetAttrKey(name), getattr(t, name)) for name in _FIELDS], None))


def _stacked(batch: Sequence[SoftTarget], *, collate_fn_map: Any = None) -> SoftTarget:
    """The targets of samples as that of a batch: what a DataLoader's default_collate calls."""
    bases = [t.base for t in batch]
    return SoftTarget(torch.stack([t.index for t in batch]), torch.stack([t.weight for t in batch]),
                      None if bases[0] is None else torch.stack([b for b in bases if b is not None]))


default_collate_fn_map[SoftTarget] = _stacked
torch.serialization.add_safe_globals([SoftTarget])  # tensors and nothing else: torch.load(..., weights_only=True)
