"""Which images are worth training on: the spread of an image's loss over mixtures that keep its share.

An anchor image keeps the share phi_0 = anchor of every mixture; the other shares are a Dirichlet draw of their own over
what is left, the law of a Dirichlet vector given one of its entries. The anchor is the canvas of a DCutMix plan, so its
share in pixels is the same in all mixtures, and what varies is which part of it is hidden, and by what. Images whose
loss varies much against its mean (the coefficient of variation) are easy or hard depending on the mixture.

Source: K-image mixing Eq. 8, the text after it, and the supplement's section on data subsampling.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from .files import DamagedFile
from .functional import soft_cross_entropy
from .mixers import DCutMix, sampling
from .mixers.pairs import MOST_IMAGES
from .ops import checks as check
from .shuffling import derived_seed, training_steps
from .states import misfit, read_state, write_state

ORDER, MIXING = 0, 1  # streams of random numbers
ROUND = 16  # batches of one process between two exchanges
SAVE_SECONDS = 10.0
Progress = Callable[[int, int, int], None]


class Uncertainty(NamedTuple):
    """Of the losses of every image: mean, standard deviation (divided by their number) and std / mean (0 where the
    mean is 0). (n,) float64 each, on the CPU. Source: K-image mixing, L_i after Eq. 8 and the CV below it."""

    mean: Tensor
    std: Tensor
    cv: Tensor


class OtherSettings(ValueError):
    """Partial statistics that were made with other settings or by another model."""


class RunningMoments:
    """Mean and squared deviations of n series, one value of each at a time (Welford 1962), in float64."""

    def __init__(self, rows: int) -> None:
        self.count = 0
        self.mean = torch.zeros(rows, dtype=torch.float64)
        self.squares = torch.zeros(rows, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        self.count += 1
        delta = values - self.mean
        self.mean = self.mean + delta / self.count
        self.squares = self.squares + delta * (values - self.mean)

    def result(self) -> Uncertainty:
        std = (self.squares / self.count).sqrt()
        return Uncertainty(self.mean, std, torch.where(self.mean == 0, 0.0, std / self.mean))


class AnchoredDCutMix(DCutMix):
    """DCutMix in which image 0 has a fixed share and the others divide the rest by Dirichlet(alpha, ..., alpha).

    Args: anchor: the share, in (0, 1). others: images beside the anchor, 1 to 1023. alpha: > 0.
    Source: K-image mixing, text after Eq. 8.
    """

    def __init__(self, anchor: float = 0.5, others: int = 2, alpha: float = 2 / 9, *,
                 generator: Generator | None = None) -> None:
        if check.at_least("AnchoredDCutMix", "others", others, 1) >= MOST_IMAGES:
            raise ValueError(f"{type(self).__name__}: others is {others}, want at most {MOST_IMAGES - 1}: a batch "
                             "takes time and memory in proportion")
        super().__init__(1 + others, alpha, generator=generator)
        anchor = check.number(self._name, "anchor", anchor, "a share between 0 and 1")
        if not 0.0 < anchor < 1.0:
            raise ValueError(f"{self._name}: anchor is {anchor}, want a share between 0 and 1")
        self.anchor = anchor

    def _shares(self, x: Tensor) -> tuple[Tensor, float]:
        rest = sampling.dirichlet(x.shape[0], self.k - 1, self.alpha, x.device, self.generator)
        return torch.cat([torch.full_like(rest[:, :1], self.anchor), (1 - self.anchor) * rest], 1), 0.0


class MapDataset(Protocol):
    """A map-style torch Dataset of (image, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor | int]: ...


class BatchReader(Protocol):
    """Images that are read in batches of given indices."""

    def __len__(self) -> int: ...

    def batches(self, indices: Iterable[Tensor], /) -> Iterator[tuple[Tensor, Tensor]]:
        """(x (N, C, H, W) float, y (N,) int64) for each index tensor (N,)."""
        ...


class _Reader:
    """A map-style dataset, read by index tensors."""

    def __init__(self, dataset: MapDataset, device: torch.device) -> None:
        self._dataset, self._device = dataset, device

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        lists: Any = [index.tolist() for index in indices]
        for batch in torch.utils.data.DataLoader(cast(Any, self._dataset), batch_sampler=lists):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
                raise TypeError(f"uncertainty: dataset gives {check.shown(batch)}, want (image, label)")
            x, y = batch
            yield x.to(self._device), y.to(self._device)


def weights_digest(model: nn.Module) -> str:
    """A name for the model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Pass:
    """The losses of the pass in progress: how many of its batches are done, and theirs."""

    def __init__(self, rows: int) -> None:
        self.done = 0
        self.losses = torch.zeros(rows, dtype=torch.float64)


def _load(state: Path, settings: dict[str, Any], moments: RunningMoments, current: _Pass) -> None:
    stored = read_state(state)
    if stored is None:
        return
    kept, rows = stored.get("settings"), settings["rows"]
    if not isinstance(kept, dict):
        raise DamagedFile(f"{state} is no state of uncertainty (it has no settings)")
    for name, value in settings.items():
        old = kept.get(name)
        if old != value:
            raise OtherSettings(f"uncertainty: {state} holds statistics of other settings ({name} is {old!r}, not "
                                f"{value!r})")
    for name in ("mean", "squares", "losses"):
        wrong = misfit(stored.get(name), torch.zeros(rows, dtype=torch.float64), name)
        if wrong:
            raise DamagedFile(f"{state} is no state of uncertainty ({wrong})")
    for name, most in (("count", settings["samples"]), ("done", rows)):
        if type(stored.get(name)) is not int or not 0 <= stored[name] <= most:
            raise DamagedFile(f"{state} is no state of uncertainty ({name} is {stored.get(name)!r:.40}, want 0 to "
                              f"{most})")
    moments.count, moments.mean, moments.squares = stored["count"], stored["mean"], stored["squares"]
    current.done, current.losses = stored["done"], stored["losses"]


def _save(state: Path, settings: dict[str, Any], moments: RunningMoments, current: _Pass) -> None:
    write_state(state, {"settings": settings, "count": moments.count, "mean": moments.mean,
                             "squares": moments.squares, "done": current.done, "losses": current.losses})


def uncertainty(model: nn.Module, dataset: MapDataset | BatchReader, anchor: float = 0.5, others: int = 2,
                alpha: float = 2 / 9, samples: int = 10, *, batch_size: int = 100, seed: int = 0,
                device: torch.device | str | None = None, state: Path | None = None,
                progress: Progress | None = None) -> Uncertainty:
    """The loss of every image of a data set over `samples` DCutMix mixtures that keep its share.

    A pass shuffles the data set, mixes each batch within itself by `AnchoredDCutMix` and takes the cross-entropy
    against the realised shares, the model in evaluation mode. Only running statistics are kept. What a batch draws
    depends on the seed, the pass and the batch alone: under torch.distributed every process takes a part of the
    batches and all return what one process would have.

    Args:
        model: (N, C, H, W) to (N, J) logits.
        dataset: a map-style torch Dataset of (image (C, H, W) float as the model takes it, label), or an object with
            ``len`` and ``batches(indices)`` yielding (x (N, C, H, W) float, y (N,) int64) for index tensors.
        anchor: share of the image itself, in (0, 1).
        others: images beside it, >= 1. alpha: > 0, of the Dirichlet draw of their shares.
        samples: M, the number of mixtures of every image, >= 2.
        batch_size: most images of a batch, whose other images are its partners; >= 2.
        device: of a map-style dataset's batches; None takes that of the model's first parameter.
        state: a file for partial statistics, written atomically by the first process every few seconds and after each
            pass. If it exists it is continued, by any number of processes.
        progress: called as ``progress(pass counted from 0, batches done, batches of the pass)``.
    Returns: Uncertainty, in the order of the data set, on every process.
    Raises: ValueError for arguments and for a loss that is not finite, `OtherSettings` for a state of other settings,
        `files.DamagedFile` for a state file that cannot be read.
    Source: K-image mixing Eq. 8; the defaults are the supplement's (anchor: its Fig. 3c).
    """
    op = "uncertainty"
    check.at_least(op, "samples", samples, 2)
    check.at_least(op, "batch_size", batch_size, 2)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model is {check.shown(model)}, want a module")
    if not hasattr(dataset, "__len__") or not (hasattr(dataset, "batches") or hasattr(dataset, "__getitem__")):
        raise TypeError(f"{op}: dataset is {check.shown(dataset)}, want a map-style Dataset or an object with batches")
    if state is not None and not isinstance(state, Path):
        raise TypeError(f"{op}: state is {check.shown(state)}, want a pathlib.Path or None")
    if progress is not None and not callable(progress):
        raise TypeError(f"{op}: progress is {check.shown(progress)}, want a function or None")
    seed = check.at_least(op, "seed", seed, 0)
    rows = len(dataset)
    check.at_least(op, "len(dataset)", rows, 1)
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = check.device(op, "device", device)
    reader = cast(BatchReader, dataset) if hasattr(dataset, "batches") else _Reader(cast(MapDataset, dataset), device)
    mixer = AnchoredDCutMix(anchor, others, alpha)
    parallel = dist.is_available() and dist.is_initialized()
    first = not parallel or dist.get_rank() == 0
    settings = {"rows": rows, "anchor": float(anchor), "others": others, "alpha": float(alpha), "samples": samples,
                "batch_size": batch_size, "seed": seed, "weights": weights_digest(model)}
    moments, current = RunningMoments(rows), _Pass(rows)
    if state is not None:
        _load(state, settings, moments, current)
        if parallel:
            dist.barrier()  # nobody may write before everybody has read
    saved = time.monotonic()
    training = model.training
    model.eval()
    try:
        for number in range(moments.count, samples):
            orders = [s.own for s in training_steps(rows, batch_size, derived_seed(seed, ORDER, number))]
            for done, index, losses in _rounds(model, reader, mixer, orders, current.done, (seed, MIXING, number)):
                if not bool(losses.isfinite().all()):
                    row = int(index[~losses.isfinite()][0])
                    raise ValueError(f"{op}: the loss of a mixture with image {row} is not a finite number")
                current.losses[index] = losses
                current.done = done
                if progress is not None:
                    progress(number, done, len(orders))
                if first and state is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    _save(state, settings, moments, current)
                    saved = time.monotonic()
            moments.add(current.losses)
            current = _Pass(rows)
            if first and state is not None:
                _save(state, settings, moments, current)
                saved = time.monotonic()
    finally:
        model.train(training)
    return moments.result()


@torch.no_grad()
def _rounds(model: nn.Module, reader: BatchReader, mixer: AnchoredDCutMix, orders: list[Tensor], start: int,
            seed: tuple[int, ...]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The batches from `start` on, some at a time, divided among the processes.

    Yields: the number of batches done, the images (b,) of the round, their losses (b,) float64 on the CPU; the same on
        every process.
    """
    parallel = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
    own = range(start + rank, len(orders), world)
    batches = iter(reader.batches([orders[b] for b in own]))
    for begin in range(start, len(orders), world * ROUND):
        end = min(begin + world * ROUND, len(orders))
        parts, device = [torch.zeros(len(orders[b]), dtype=torch.float64) for b in range(begin, end)], None
        for b in range(begin + rank, end, world):
            x, y = next(batches)
            device = x.device
            mixer.generator = Generator(device).manual_seed(derived_seed(*seed, b))
            mixed, target = mixer(x, y)
            parts[b - begin] = soft_cross_entropy(model(mixed).float(), target, reduction="none").double().cpu()
        losses = torch.cat(parts)
        if parallel:  # every value comes from one process and is zero elsewhere: the sum is exact
            device = _backend_device(device)
            losses = losses.to(device)
            dist.all_reduce(losses)
        yield end, torch.cat(orders[begin:end]), losses.cpu()


def _backend_device(device: torch.device | None) -> torch.device:
    """Where a collective takes its tensors; a process without a batch in the round still takes part."""
    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    return device if device is not None else torch.device("cuda", torch.cuda.current_device())


def subsample(cv: Tensor, labels: Tensor, ratio: float, interval: int = 1) -> Tensor:
    """The images of largest cv, the same share of every class.

    Args:
        cv: (n,) float, any measure: -mean gives the easy images, mean the hard ones. Ties go to the first image.
        labels: (n,) int64 classes.
        ratio: share of every class that is kept, in (0, 1]: ``round(ratio * size)`` images, at least one.
        interval: 1 takes the first images in descending order of cv; i every i-th of that order, from the first.
    Returns: sorted int64 indices for `torch.utils.data.Subset`.
    Raises: ValueError for arguments, for cv that is NaN, and for an interval that runs past the end of a class.
    Source: K-image mixing, supplement Eq. 1: the deterministic and the interval-based selection (Fig. 4a; supplement
        Fig. 3a and 3b).
    """
    op = "subsample"
    check.ndim(op, "cv", cv, 1)
    check.dtype(op, "cv", cv, *check.FLOATS)
    check.shape(op, "labels", labels, cv.shape, "(n,) like cv")
    check.dtype(op, "labels", labels, torch.int64)
    check.at_least(op, "interval", interval, 1)
    if not 0.0 < check.number(op, "ratio", ratio, "a share above 0, at most 1") <= 1.0:
        raise ValueError(f"{op}: ratio is {ratio}, want a share above 0, at most 1")
    cv, labels = cv.cpu(), labels.cpu()
    if bool(cv.isnan().any()):
        raise ValueError(f"{op}: cv of image {int(cv.isnan().nonzero()[0])} is NaN")
    chosen = [torch.empty(0, dtype=torch.int64)]
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, round(ratio * len(members)))
        if (count - 1) * interval >= len(members):
            raise ValueError(f"{op}: interval is {interval}, want at most {(len(members) - 1) // (count - 1)}: class "
                             f"{label} has {len(members)} images, of which {count} are to be kept")
        order = members[cv[members].argsort(descending=True, stable=True)]
        chosen.append(order[:count * interval:interval])
    return torch.cat(chosen).sort().values
