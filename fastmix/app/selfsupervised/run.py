"""One self-supervised run: the loop, checkpoints and folder of `fastmix.app.training`, with pairs of views."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastmix

from ...files import make_folder
from ...functional import pair_weight
from ...refinement import Refinement
from .. import claims, data, methods, tables
from ..console import printer
from ..figures import training as pictures
from ..figures.drawing import optional
from ..models.classifier import last_layer
from ..names import printable
from ..streams import TrainingStream, seed_everything
from ..training import checkpoint
from ..training.distributed import Processes
from ..training.jobs import epoch_bar
from ..training.loop import Epoch
from ..training.places import Place
from ..training.run import CONFIG, METRICS, REPORT, REPORT_ENTRIES, Run, clear, device_name, finished
from ..training.samples import SHOWN
from ..training.setup import Setup, build_model, check_size, load_data, over_processes
from ..training.timing import StepTimer
from .linear import linear_evaluation
from .options import SslOptions
from .simsiam import SimSiam, simsiam_loss, spread
from .views import Pair, pair_of_views

CURVES, PAIRS = "curves.png", "pairs.png"
ENTRIES = REPORT_ENTRIES | {"pair_weight": str, "linear": dict, "untrained": dict}
FILES = (CONFIG, METRICS, REPORT, checkpoint.NAME, CURVES, PAIRS)


def _siamese(options: SslOptions, dataset: data.Dataset) -> SimSiam:
    """The model of the run's seed, the same in every process and for all pair weights."""
    backbone = build_model(options, dataset)
    path, head = last_layer(backbone, len(dataset.classes), options.model, "train-ssl")
    backbone.set_submodule(path, nn.Identity())
    return SimSiam(backbone, head.in_features, options.dim)


def setup(options: SslOptions, dataset: data.Dataset, processes: Processes) -> Setup:
    """Everything a run works on, at epoch 0."""
    device, world = processes.device, processes.world
    images = check_size(dataset, world)
    model = _siamese(options, dataset).to(device)
    encoder = [*model.backbone.parameters(), *model.projector.parameters()]
    # The predictor keeps its learning rate, which does better (SimSiam Sec. 4.2).
    optimizer = torch.optim.SGD([{"params": encoder}, {"params": model.predictor.parameters()}],
                                lr=options.rate(world), momentum=options.momentum, weight_decay=options.weight_decay)
    total = options.epochs * len(data.training_steps(images, options.batch, 0, 0, world))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1))), lambda step: 1.0])
    method = methods.plain(options)
    moved = dataclasses.replace(dataset, train=dataset.train.to(device), test=dataset.test.to(device))
    return Setup(options, processes, moved, data.Preprocess(dataset, device), model, over_processes(model, processes),
                 optimizer, scheduler, method, None, method.objective(model, len(dataset.classes), total, device),
                 refinement=Refinement(options.epochs, 0))


def views(setup: Setup, images: Tensor, generator: torch.Generator) -> Pair:
    options: SslOptions = setup.options  # type: ignore[assignment]
    return pair_of_views(images, (options.scale_min, 1.0), options.jitter, setup.dataset.flips, generator)


def weights(options: SslOptions, iou: Tensor) -> Tensor | None:
    """(N,) of mean 1; None: all pairs count the same."""
    if options.pair_weight == "none":
        return None
    return pair_weight(iou, options.pair_k, options.pair_chance, options.pair_weight)


def normalised(setup: Setup, view: Tensor) -> Tensor:
    """A view (N, C, H, W) in bytes' units as the model takes it."""
    x = setup.preprocess.normalise(view / 255)
    return x.contiguous(memory_format=torch.channels_last) if setup.options.channels_last else x


class PairEpoch(Epoch):
    """An epoch over pairs of views."""

    def __init__(self, setup: Setup, epoch: int, timer: StepTimer, advance: Callable[[], None]) -> None:
        super().__init__(setup, epoch, timer, advance)
        seed = data.derived_seed(setup.options.seed, TrainingStream.CROPPING, epoch, setup.processes.rank)
        self._generator = torch.Generator(setup.device).manual_seed(seed)

    def inputs(self, images: Tensor) -> Pair:
        return views(self._setup, images, self._generator)

    def learn(self, pair: Pair) -> None:
        """One update."""
        setup, timer = self._setup, self.timer
        first, second = (normalised(setup, view) for view in (pair.first, pair.second))
        weight = weights(setup.options, pair.iou)  # type: ignore[arg-type]
        setup.optimizer.zero_grad(set_to_none=True)
        with setup.autocast():
            p1, p2, z1, z2 = setup.parallel(first, second)
        timer.end("model")
        loss = simsiam_loss(p1, p2, z1, z2, weight)
        timer.end("loss")
        (loss if self._scale == 1 else loss * self._scale).backward()
        setup.optimizer.step()
        timer.end("model")
        rows = len(pair.iou)
        self._end(loss.detach(), spread(z1) * rows, rows)

    def result(self) -> dict[str, Any]:
        """train_loss, spread (see `simsiam.spread`), lr, seconds, ms."""
        entry = super().result()
        return {"train_loss": entry["train_loss"], "spread": entry["train_accuracy"]} | {
            key: entry[key] for key in ("lr", "seconds", "ms")}


class SslRun(Run):
    """A self-supervised run in its folder."""

    make = staticmethod(setup)
    files = FILES

    def _epoch(self, number: int, timer: StepTimer) -> dict[str, Any]:
        epoch = PairEpoch(self.setup, number, timer, lambda: advance())
        with self.bar(number, self.options.epochs, len(epoch.steps)) as advance:
            for pair, _ in epoch.batches():
                epoch.learn(pair)
            return {"epoch": number} | epoch.result()

    def describe(self, entry: dict[str, Any]) -> list[tuple[int, str]]:
        return [(0, f"loss {entry['train_loss']:.4f}"), (0, f"spread {entry['spread']:.3f}")]

    def report(self) -> dict[str, Any]:
        """Linear evaluation of the backbone, and of one with random weights. Every process must call it."""
        setup, last = self.setup, self.history[-1]
        options: SslOptions = setup.options  # type: ignore[assignment]

        def read(model: nn.Module) -> dict[str, float]:
            return linear_evaluation(setup, model.backbone, options.linear_epochs, options.linear_lr)  # type: ignore

        learnt = read(setup.model)
        untrained = read(_siamese(options, setup.dataset).to(setup.device))
        result = {
            "method": "simsiam", "pair_weight": options.pair_weight, "data": options.data, "model": options.model,
            "seed": options.seed, "epochs": options.epochs, "linear_epochs": options.linear_epochs,
            "train_images": len(setup.dataset.train.labels), "test_images": len(setup.dataset.test.labels),
            "linear": learnt, "untrained": untrained, "loss": last["train_loss"], "spread": last["spread"],
            "ms": {name: statistics.median(entry["ms"][name] for entry in self.history) for name in last["ms"]},
            "seconds": sum(entry["seconds"] for entry in self.history),
            "weights": sum(p.numel() for p in setup.model.parameters()), "device": device_name(setup.device),
            "threads": torch.get_num_threads(), "processes": setup.processes.world, "torch": torch.__version__,
            "fastmix": fastmix.__version__,
        }
        if self.writes:
            title = f"SimSiam, pair weights {options.pair_weight}, on {options.data}, {options.model}"
            checkpoint.write_json(self.folder / REPORT, result)
            with optional(self.folder / CURVES):
                pictures.lines(self.history, {"train_loss": "loss", "spread": "spread of the projections (0: collapse)",
                                              "lr": "learning rate, end of the epoch"}, title, self.folder / CURVES)
            with optional(self.folder / PAIRS):
                draw_pairs(setup, title, self.folder / PAIRS)
        setup.processes.barrier()
        return result


def draw_pairs(setup: Setup, title: str, path: Any) -> None:
    """Some images with their two crops, the IoU and what the pair weighs in a batch of 64 (under SA1 and SA2 both, if
    the run weighs none)."""
    options: SslOptions = setup.options  # type: ignore[assignment]
    seed_everything(options.seed, TrainingStream.SAMPLES)
    split = setup.dataset.train
    index = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(options.seed))[:8 * SHOWN]
    images, _ = next(split.batches([index]))
    pair = views(setup, images, torch.Generator(setup.device).manual_seed(options.seed))
    kinds = ("SA1", "SA2") if options.pair_weight == "none" else (options.pair_weight,)
    weight = {kind: weights(dataclasses.replace(options, pair_weight=kind), pair.iou) for kind in kinds}
    lines = [[f"IoU {pair.iou[n]:.2f}", *(f"{kind} {value[n]:.2f}" for kind, value in weight.items())]
             for n in range(min(SHOWN, len(images)))]
    shown = [(stack[:SHOWN].float() / 255).clamp(0, 1).permute(0, 2, 3, 1).cpu()
             for stack in (images, pair.first, pair.second)]
    pictures.pairs(*shown, pair.boxes[:SHOWN].cpu(), lines, title, path)


def _table(result: dict[str, Any]) -> str:
    columns = ("backbone", "test acc %", "train acc %", "ECE %")
    return tables.table(columns, [[name, *(f"{100 * result[key][entry]:.2f}"
                                           for entry in ("test_accuracy", "train_accuracy", "ece"))]
                                  for name, key in (("SimSiam", "linear"), ("untrained", "untrained"))])


def train_one(options: SslOptions, place: Place, here: Processes) -> None:
    """Trains what is left of a run, in a folder that it holds, and prints its table."""
    with claims.held(here.share, place.claim) as folder:
        place.folder = folder
        _train_one(options, folder, place.resume, here)


def _train_one(options: SslOptions, folder: Path, resume: bool, here: Processes) -> None:
    log = printer(here.first)
    result = finished(folder, options.epochs, ENTRIES) if resume else None
    if result is None:
        run = SslRun(options, load_data(options, here.first), here, folder, log, epoch_bar(here.first))
        run.setup.dataset.say(log)
        here.barrier()  # all have read before the first process writes
        if here.first and not resume:
            clear(folder, FILES)
            make_folder(folder)
            checkpoint.write_json(folder / CONFIG, options.to_json())
        here.barrier()
        log(f"SimSiam, pair weights {options.pair_weight}, seed {options.seed}: {printable(folder)}")
        run.start(resume)
        run.train()
        log(f"linear evaluation, {options.linear_epochs} epochs")
        result = run.report()
    log(_table(result))
    log(f"written to {printable(folder)}")
