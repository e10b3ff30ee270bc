"""The parts of an evaluation: each takes the judged model and gives what goes into the JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import data
from .._cli import CommandError, require
from ..train.loop import BELOW_ONE, ECE_BINS
from ..train.trained import Trained
from . import attacks, calibration, cam, occlusion, surface

OCCLUSION, ATTACK, WEIGHTS, NOISE, DIRECTIONS = range(1, 6)  # streams of random numbers
SIGMAS = tuple(0.01 * i for i in range(9))
THRESHOLDS = tuple(0.05 * i for i in range(1, 20))
OVERLAP = 0.5  # of a box that counts as found
EXAMPLES = 8
Bar = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]


class Skipped(Exception):
    """A part that cannot be judged here; the message says why."""


@dataclass
class Judged:
    """The model, the test images it is judged on, and the settings.

    split: of bytes, on the device. index: its rows in the test set. bar: progress of a named part.
    """

    trained: Trained
    split: data.Split
    index: Tensor
    batch: int
    seed: int
    epsilon: float
    pgd_steps: int
    surface_images: int
    points: int
    span: float
    threshold: float
    bar: Bar
    examples: list[tuple[Tensor, Tensor, Tensor, tuple[int, int, int, int]]] = field(default_factory=list)

    def generator(self, *stream: int) -> torch.Generator:
        return torch.Generator(self.trained.device).manual_seed(data.derived_seed(self.seed, *stream))

    def batches(self, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes and labels of all images, under a progress bar."""
        indices = data.evaluation_batches(len(self.split.labels), self.batch)
        with self.bar(what, len(indices)) as advance:
            for images, y in self.split.batches(indices):
                yield images, y
                advance()


@torch.no_grad()
def judge_calibration(judged: Judged) -> dict[str, Any]:
    """accuracy, loss, ece (torchmetrics) and the bins of the reliability diagram."""
    classification = require("torchmetrics.functional.classification", "torchmetrics", "the calibration error")
    logits, labels = [], []
    for images, y in judged.batches("calibration"):
        logits.append(judged.trained.model(judged.trained.inputs(images)).float())
        labels.append(y)
    z, y = torch.cat(logits), torch.cat(labels)
    p = z.softmax(1)
    ece = classification.multiclass_calibration_error(p.clamp(max=BELOW_ONE), y, max(2, p.shape[1]), n_bins=ECE_BINS,
                                                      validate_args=False)
    return {"accuracy": (z.argmax(1) == y).double().mean().item(), "loss": F.cross_entropy(z, y).item(),
            "ece": ece.item(), "confidence": p.amax(1).double().mean().item(),
            "bins": calibration.reliability(p, y, ECE_BINS)}


@torch.no_grad()
def judge_occlusion(judged: Judged) -> dict[str, Any]:
    """Accuracy with a patch of 0 to 80 % of the area hidden. Source: Soft Augmentation Fig. 5."""
    found = []
    for number, share in enumerate(occlusion.SHARES):
        generator = judged.generator(OCCLUSION, number)
        correct = 0
        hidden = 0.0
        for images, y in judged.batches(f"occlusion {share:.0%}"):
            x, hidden = occlusion.occlude(judged.trained.inputs(images), share, generator)
            correct += int((judged.trained.model(x).argmax(1) == y).sum())
        found.append({"share": share, "hidden": hidden, "accuracy": correct / len(judged.split.labels)})
    return {"curve": found}


def judge_attacks(judged: Judged) -> dict[str, Any]:
    """Accuracy on clean images, and on what FGSM and PGD make of all of them."""
    forward, epsilon = judged.trained.forward_pixels, judged.epsilon
    generator = judged.generator(ATTACK)
    correct = dict.fromkeys(("clean", "fgsm", "pgd"), 0)
    for images, y in judged.batches("attacks"):
        x = images.float() / 255
        found = {"clean": x, "fgsm": attacks.fgsm(forward, x, y, epsilon),
                 "pgd": attacks.pgd(forward, x, y, epsilon, step=epsilon / 4, steps=judged.pgd_steps,
                                    generator=generator)}
        with torch.no_grad():
            for name, attacked in found.items():
                correct[name] += int((forward(attacked).argmax(1) == y).sum())
    accuracy = {name: count / len(judged.split.labels) for name, count in correct.items()}
    return {"epsilon": epsilon, "pgd_steps": judged.pgd_steps, "pgd_step": epsilon / 4, "accuracy": accuracy}


def _weight_loss(judged: Judged) -> surface.WeightLoss:
    labels = judged.split.labels
    count = min(judged.surface_images, len(labels))
    index = torch.arange(len(labels)) if count == len(labels) else data.balanced_subset(
        labels, max(count, len(labels.unique())), "--surface-images")
    batches = [(judged.trained.inputs(images), y) for images, y in judged.split.batches(index.split(judged.batch))]
    return surface.WeightLoss(judged.trained.model, batches)


def judge_noise(judged: Judged) -> dict[str, Any]:
    """The loss with Gaussian noise on every weight. Source: K-image mixing Fig. 3b."""
    loss, draws = _weight_loss(judged), 5
    with judged.bar("noise on the weights", draws * len(SIGMAS)) as advance:
        curve = surface.noise(loss, SIGMAS, draws, judged.generator(NOISE), advance)
    return {"images": min(judged.surface_images, len(judged.split.labels)), "curve": curve}


def judge_surface(judged: Judged) -> dict[str, Any]:
    """The loss over two Hessian eigenvectors and over two random directions. Source: K-image mixing Fig. 3a."""
    loss = _weight_loss(judged)
    with judged.bar("eigenvectors of the Hessian", None) as advance:
        values, vectors = surface.top_eigenvectors(loss, 2, seed=data.derived_seed(judged.seed, WEIGHTS),
                                                   advance=advance)
    generator = judged.generator(DIRECTIONS)
    random = [surface.filter_normalised(loss.origin, generator) for _ in range(2)]
    result: dict[str, Any] = {"images": min(judged.surface_images, len(judged.split.labels)), "loss": loss.at(),
                              "eigenvalues": values}
    for name, directions in (("hessian", vectors), ("random", random)):
        with judged.bar(f"loss surface, {name}", judged.points**2) as advance:
            result[name] = surface.grid(loss, *directions, judged.span, judged.points, advance)
    return result


def judge_cam(judged: Judged) -> dict[str, Any]:
    """Localisation by class activation maps.

    top1: the class is right and the box of its map overlaps a true one by half (R-Mix Table 5); known: the map of the
    true class, whether or not it was predicted; best: known, at the best of THRESHOLDS.
    """
    reader = judged.trained.dataset.test_boxes
    if reader is None:
        raise Skipped(f"--data {judged.trained.options.data} has no boxes; digit-canvas has, and a folder with a "
                      "boxes.csv in its test directory")
    require("scipy.ndimage", "scipy", "localisation")
    everything = reader()
    truth = [everything[i] for i in judged.index.tolist()]
    top1, correct, row = 0, 0, 0
    overlaps: list[float] = []
    found = torch.zeros(len(THRESHOLDS), dtype=torch.int64)
    for images, y in judged.batches("localisation"):
        try:
            logits, maps = cam.class_activation_maps(judged.trained.model, judged.trained.inputs(images))
        except cam.NoMaps as error:
            raise Skipped(f"--model {judged.trained.options.model}: {error}") from None
        heat = cam.normalised(maps[torch.arange(len(y)), y], tuple(images.shape[2:])).cpu()
        right = (logits.argmax(1) == y).tolist()
        for i in range(len(y)):
            box = cam.largest_box(heat[i], judged.threshold)
            overlap = cam.iou(box, truth[row])
            overlaps.append(overlap)
            top1 += right[i] and overlap >= OVERLAP
            correct += right[i]
            found += torch.tensor([cam.iou(cam.largest_box(heat[i], t), truth[row]) >= OVERLAP for t in THRESHOLDS])
            if len(judged.examples) < EXAMPLES:
                picture = judged.trained.preprocess.displayable(judged.trained.inputs(images[i:i + 1]))[0]
                judged.examples.append((picture, heat[i], truth[row], box))
            row += 1
    curve = [{"threshold": t, "known": int(count) / row} for t, count in zip(THRESHOLDS, found, strict=True)]
    best = max(curve, key=lambda entry: entry["known"])
    return {"threshold": judged.threshold, "overlap": OVERLAP, "accuracy": correct / row, "top1": top1 / row,
            "known": sum(o >= OVERLAP for o in overlaps) / row, "mean_iou": statistics.fmean(overlaps), "best": best,
            "curve": curve}


PARTS: dict[str, Callable[[Judged], dict[str, Any]]] = {
    "calibration": judge_calibration, "occlusion": judge_occlusion, "attacks": judge_attacks, "noise": judge_noise,
    "surface": judge_surface, "cam": judge_cam}


def summary(name: str, part: dict[str, Any]) -> str:
    """A part's result in a line."""
    if name == "calibration":
        return f"accuracy {part['accuracy']:.2%}, ECE {part['ece']:.2%}, loss {part['loss']:.4f}"
    if name == "occlusion":
        return ", ".join(f"{entry['share']:.0%} hidden: {entry['accuracy']:.2%}" for entry in part["curve"])
    if name == "attacks":
        return f"epsilon {255 * part['epsilon']:g}/255: " + ", ".join(
            f"{key} {value:.2%}" for key, value in part["accuracy"].items())
    if name == "noise":
        means = [(entry["sigma"], mean(entry["loss"])) for entry in part["curve"]]
        return "loss " + ", ".join(f"{value:.3g} at {sigma:g}" for sigma, value in means[::2])
    if name == "surface":
        return f"loss {part['loss']:.4f}, eigenvalues " + ", ".join(f"{value:.4g}" for value in part["eigenvalues"])
    return (f"top-1 localisation {part['top1']:.2%}, known class {part['known']:.2%}, best {part['best']['known']:.2%} "
            f"at threshold {part['best']['threshold']:.2f}, mean IoU {part['mean_iou']:.3f}")


def mean(values: list[float | None]) -> float:
    """NaN if one of them was no finite number."""
    return math.nan if None in values else statistics.fmean(values)  # type: ignore[arg-type]


def run(name: str, judged: Judged) -> dict[str, Any]:
    """One part. CommandError if there is not enough memory."""
    try:
        return PARTS[name](judged)
    except torch.OutOfMemoryError:
        raise CommandError(f"out of memory in part {name}; try a smaller --batch or --surface-images") from None
