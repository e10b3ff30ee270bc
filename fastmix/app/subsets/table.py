"""The statistics of the training images' losses, and the selections that they give."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...files import DamagedFile, read_bytes, remove, write_atomically
from ...subsampling import AnchoredDCutMix, OtherSettings, Uncertainty, subsample, uncertainty, weights_digest
from .. import claims, data
from ..console import CommandError, UsageError, first_line, progress_bar
from ..data import arrays
from ..names import printable
from ..streams import SubsetStream
from ..training.distributed import Processes
from ..training.trained import Inputs, Trained

EXPANSION = 64  # by which a table unpacks at most; it is written as it is
MEASURES = ("top", "interval", "std", "easy", "hard", "random")


def select(how: str, scores: Uncertainty | None, labels: Tensor, share: float, interval: int, seed: int) -> Tensor:
    """Rows of the table that a selection keeps; random ones need no scores. UsageError for an interval too long."""
    if how != "random" and scores is not None:
        measure = {"top": scores.cv, "interval": scores.cv, "std": scores.std, "easy": -scores.mean,
                   "hard": scores.mean}[how]
    else:
        generator = torch.Generator().manual_seed(data.derived_seed(seed, SubsetStream.RANDOM))
        measure = torch.rand(len(labels), dtype=torch.float64, generator=generator)
    try:
        return subsample(measure, labels, share, interval if how == "interval" else 1)
    except ValueError as error:
        raise UsageError(str(error)) from None


@dataclass(frozen=True)
class Scoring:
    """How training images are scored: each is mixed with ``others`` images ``samples`` times, keeping ``anchor``.

    limit: score so many images, as many of every class; None: all. alpha: of the Dirichlet distribution of the other
    images' shares. batch: images of a batch. seed: of the mixtures.
    """

    limit: int | None = None
    samples: int = 10
    anchor: float = 0.5
    others: int = 2
    alpha: float = 2 / 9
    batch: int = 100
    seed: int = 0

    def check(self) -> None:
        """UsageError for settings that give no statistics."""
        if self.samples < 2:
            raise UsageError("--samples is 1, want at least 2: one loss has no spread")
        if self.batch < 2:
            raise UsageError("--batch is 1, want at least 2: an image's partners are the others of its batch")
        try:
            AnchoredDCutMix(self.anchor, self.others, self.alpha)
        except ValueError as error:
            raise UsageError(str(error)) from None


class Table:
    """The statistics of all images, kept in a file beside what was asked for.

    index: (n,) int64 in the whole training set. labels: (n,) int64.
    """

    def __init__(self, path: Path, trained: Trained, scoring: Scoring) -> None:
        train, limit = trained.dataset.train, scoring.limit
        if not len(train.labels):
            raise CommandError(f"{printable(trained.options.root or '')} has no training images to choose from")
        everything = torch.arange(len(train.labels))
        self.index = everything if limit is None else data.balanced_subset(train.labels, limit, "--limit")
        self.labels = train.labels[self.index]
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self._images = Inputs(trained, train.subset(self.index))
        self._model = trained.model
        self._scoring = scoring
        self.settings = {"data": trained.options.data, "images": len(self.index), "samples": scoring.samples,
                         "anchor": scoring.anchor, "others": scoring.others, "alpha": scoring.alpha,
                         "batch": scoring.batch, "seed": scoring.seed, "weights": weights_digest(trained.model)}

    def scores(self, here: Processes, overwrite: bool = False) -> Uncertainty:
        """From the file, or computed and written by the first process, which holds it meanwhile. overwrite: compute
        them in any case."""
        if here.share(lambda: self.path.exists() and not overwrite):
            return self._scores(here, False)
        with claims.held(here.share, lambda stack: stack.enter_context(claims.Claim.of_file(self.path)) and None):
            return self._scores(here, overwrite)

    def _scores(self, here: Processes, overwrite: bool) -> Uncertainty:
        samples = self._scoring.samples
        if overwrite and here.first:
            for path in (self.path, self.partial):
                remove(path)
        here.barrier()
        found = self._read()
        if found is not None:
            if here.first:
                print(f"statistics of {len(self.index)} images from {printable(self.path)}", flush=True)
            return found
        with progress_bar(f"{samples} mixtures of {len(self.index)} images", samples, here.first) as bar:
            scores = self._compute(here, bar)
        if here.first:
            buffer = io.BytesIO()
            arrays = {name: value.numpy() for name, value in
                      {"index": self.index, "label": self.labels, **scores._asdict()}.items()}
            np.savez(buffer, settings=np.array(json.dumps(self.settings)), **arrays)
            write_atomically(self.path, buffer.getvalue())
            remove(self.partial)
        here.barrier()
        return scores

    def _compute(self, here: Processes, advance: Callable[[float], object]) -> Uncertainty:
        scoring, before = self._scoring, 0.0

        def progress(number: int, done: int, batches: int) -> None:
            nonlocal before
            now = number + done / batches
            advance(now - before)
            before = now
            if here.first and done == batches:
                print(f"mixture {number + 1}/{scoring.samples} of {len(self.index)} images", flush=True)

        if here.first and self.partial.exists():
            print(f"continuing {printable(self.partial)}", flush=True)
        try:
            return uncertainty(self._model, self._images, scoring.anchor, scoring.others, scoring.alpha,
                               scoring.samples, batch_size=scoring.batch, seed=scoring.seed, state=self.partial,
                               progress=progress)
        except OtherSettings as error:
            raise UsageError(f"{error}; --overwrite starts anew") from None
        except ValueError as error:
            raise CommandError(str(error)) from None

    def _read(self) -> Uncertainty | None:
        try:
            settings, columns = self._content(read_bytes(self.path))
        except FileNotFoundError:
            return None
        except MemoryError:
            raise
        except Exception as error:  # a damaged archive makes zipfile raise almost anything
            raise UsageError(f"{printable(self.path)} is damaged or no table of statistics ({first_line(error)}); "
                             "--overwrite replaces it") from None
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise UsageError(f"{self.path} holds statistics of other settings ({name} is {settings.get(name)!r}, "
                                 f"not {value!r}); --overwrite replaces them, --table takes another file")
        return Uncertainty(*columns)


    def _content(self, content: bytes) -> tuple[dict[str, Any], list[Tensor]]:
        """Settings and columns, each no longer than it has to be: a small archive may unpack to anything."""
        def member(name: str, most: int) -> bytes:
            if archive.getinfo(f"{name}.npy").file_size > most + arrays.HEADER:
                raise DamagedFile(f"{name} is too long")
            return archive.read(f"{name}.npy")

        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(each.file_size for each in archive.infolist()) > EXPANSION * len(content):
                raise DamagedFile("it unpacks to far more than it is")
            for each in archive.infolist():
                with archive.open(each) as file:  # its end checks the CRC
                    while file.read(2**20):
                        pass
            settings = json.loads(str(arrays.read(member("settings", 2**16), "U", ())))
            if not isinstance(settings, dict):
                raise DamagedFile("its settings are no names and values")
            rows = len(self.index)
            if settings.get("images") != rows:  # of another table, whose columns have another length
                return settings, []
            columns = [arrays.read(member(name, 8 * rows), "f", (rows,)) for name in Uncertainty._fields]
        return settings, [torch.from_numpy(column).double() for column in columns]


def write_index(path: Path, index: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, index.numpy())
    write_atomically(path, buffer.getvalue())
