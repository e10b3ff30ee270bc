"""The parts of an evaluation: each takes an `Evaluation` and gives what goes into the JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import data
from ..console import CommandError, require
from ..streams import EvaluationStream
from ..training.distributed import Processes
from ..training.evaluate import BELOW_ONE, ECE_BINS
from ..training.trained import Trained
from . import attacks, calibration, cam, occlusion, surface

SIGMAS = tuple(0.01 * i for i in range(9))
THRESHOLDS = tuple(0.05 * i for i in range(1, 20))
OVERLAP = 0.5  # of a box that counts as found
EXAMPLES = 8
Bar = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]


class Batch(NamedTuple):
    """Bytes and labels of some test images. number: of the batch among all; rows: of the images in Evaluation.split."""

    number: int
    rows: Tensor
    images: Tensor
    y: Tensor


class Skipped(Exception):
    """A part that cannot be evaluated here; the message says why."""


@dataclass
class Evaluation:
    """The model, the test images it is evaluated on, and the settings.

    Every process takes some whole batches, and what is random is drawn for each batch anew: the results are those of
    one process, whatever their number. split: of bytes, on the device. index: its rows in the test set. bar: progress
    of a named part.
    """

    trained: Trained
    processes: Processes
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

    def batches(self, what: str) -> Iterator[Batch]:
        """The batches of this process, under a progress bar."""
        rank, world = self.processes.rank, self.processes.world
        indices = list(enumerate(data.evaluation_batches(len(self.split.labels), self.batch)))[rank::world]
        with self.bar(what, len(indices)) as advance:
            for (number, rows), (images, y) in zip(indices, self.split.batches([rows for _, rows in indices]),
                                                   strict=True):
                yield Batch(number, rows, images, y)
                advance()

    def zeros(self, *shape: int) -> Tensor:
        """Float64, on the device: what the processes fill each in its own rows, or count, before `total`."""
        return torch.zeros(shape, dtype=torch.float64, device=self.trained.device)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return self.processes.sum(value)


@torch.no_grad()
def evaluate_calibration(evaluation: Evaluation) -> dict[str, Any]:
    """accuracy, loss, ece (torchmetrics) and the bins of the reliability diagram.

    Source: Soft Augmentation Eq. 8 (10 bins), Table 3; R-Mix Table 6.
    """
    classification = require("torchmetrics.functional.classification", "torchmetrics", "the calibration error")
    found = evaluation.zeros(3, len(evaluation.split.labels))
    for _, rows, images, y in evaluation.batches("calibration"):
        z = evaluation.trained.model(evaluation.trained.inputs(images)).float()
        confidence, predicted = z.softmax(1).max(1)
        values = (confidence, predicted == y, F.cross_entropy(z, y, reduction="none"))
        found[:, rows] = torch.stack([value.double() for value in values])
    confidence, correct, loss = evaluation.total(found)
    # The calibration error of many classes is that of whether the first one is right.
    ece = classification.binary_calibration_error(confidence.float().clamp(max=BELOW_ONE), correct.long(),
                                                  n_bins=ECE_BINS, validate_args=False)
    return {"accuracy": correct.mean().item(), "loss": loss.mean().item(), "ece": ece.item(),
            "confidence": confidence.mean().item(), "bins": calibration.diagram(confidence, correct, ECE_BINS)}


@torch.no_grad()
def evaluate_occlusion(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy with a patch of 0 to 80 % of the area hidden. Source: Soft Augmentation Fig. 5."""
    found = []
    for number, share in enumerate(occlusion.SHARES):
        correct = evaluation.zeros()
        for batch, _, images, y in evaluation.batches(f"occlusion {share:.0%}"):
            generator = evaluation.generator(EvaluationStream.OCCLUSION, number, batch)
            x, _ = occlusion.occlude(evaluation.trained.inputs(images), share, generator)
            correct += (evaluation.trained.model(x).argmax(1) == y).sum()
        size = tuple(evaluation.trained.dataset.shape[1:])
        found.append({"share": share, "hidden": math.prod(occlusion.patch_size(share, size)) / math.prod(size),
                      "accuracy": evaluation.total(correct).item() / len(evaluation.split.labels)})
    return {"curve": found}


def evaluate_attacks(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy on clean images, and on what FGSM and PGD make of all of them.

    Source: K-image mixing Table 4 (its PGD: on another model's attacks), R-Mix Table 6.
    """
    forward, epsilon = evaluation.trained.forward_pixels, evaluation.epsilon
    names = ("clean", "fgsm", "pgd")
    correct = evaluation.zeros(len(names))
    for number, _, images, y in evaluation.batches("attacks"):
        x = images.float() / 255
        found = (x, attacks.fgsm(forward, x, y, epsilon),
                 attacks.pgd(forward, x, y, epsilon, step=epsilon / 4, steps=evaluation.pgd_steps,
                             generator=evaluation.generator(EvaluationStream.ATTACK, number)))
        with torch.no_grad():
            correct += torch.stack([(forward(attacked).argmax(1) == y).sum() for attacked in found])
    shares = (evaluation.total(correct) / len(evaluation.split.labels)).tolist()
    return {"epsilon": epsilon, "pgd_steps": evaluation.pgd_steps, "pgd_step": epsilon / 4,
            "accuracy": dict(zip(names, shares, strict=True))}


def _weight_loss(evaluation: Evaluation) -> surface.WeightLoss:
    labels = evaluation.split.labels
    count = min(evaluation.surface_images, len(labels))
    index = torch.arange(len(labels)) if count == len(labels) else data.balanced_subset(
        labels, max(count, len(labels.unique())), "--surface-images")
    rank, world = evaluation.processes.rank, evaluation.processes.world
    share = index.split(min(evaluation.batch, -(-len(index) // world)))[rank::world]
    batches = [(evaluation.trained.inputs(images), y) for images, y in evaluation.split.batches(share)]
    return surface.WeightLoss(evaluation.trained.model, batches, evaluation.total)


def evaluate_noise(evaluation: Evaluation) -> dict[str, Any]:
    """The loss with Gaussian noise on every weight. Source: K-image mixing Fig. 3b."""
    loss, draws = _weight_loss(evaluation), 5
    with evaluation.bar("noise on the weights", draws * len(SIGMAS)) as advance:
        curve = surface.noise(loss, SIGMAS, draws, evaluation.generator(EvaluationStream.NOISE), advance)
    return {"images": min(evaluation.surface_images, len(evaluation.split.labels)), "curve": curve}


def evaluate_surface(evaluation: Evaluation) -> dict[str, Any]:
    """The loss over two Hessian eigenvectors and over two random directions. Source: K-image mixing Fig. 3a; its
    supplement's Fig. 1."""
    loss = _weight_loss(evaluation)
    with evaluation.bar("eigenvectors of the Hessian", None) as advance:
        seed = data.derived_seed(evaluation.seed, EvaluationStream.WEIGHTS)
        values, vectors = surface.top_eigenvectors(loss, 2, seed=seed, advance=advance)
    generator = evaluation.generator(EvaluationStream.DIRECTIONS)
    random = [surface.filter_normalised(loss.origin, generator) for _ in range(2)]
    result: dict[str, Any] = {"images": min(evaluation.surface_images, len(evaluation.split.labels)), "loss": loss.at(),
                              "eigenvalues": values}
    for name, directions in (("hessian", vectors), ("random", random)):
        with evaluation.bar(f"loss surface, {name}", evaluation.points**2) as advance:
            result[name] = surface.grid(loss, *directions, evaluation.span, evaluation.points, advance)
    return result


def evaluate_localisation(evaluation: Evaluation) -> dict[str, Any]:
    """Localisation by class activation maps, scaled to [0, 1].

    Where a good threshold lies depends on data and model, so curve has all of THRESHOLDS (Choe et al. 2020, MaxBoxAcc:
    the best of them), beside the one that was asked for.

    top1: the class is right and the box of its map overlaps a true one by half; known: the map of the
    true class, whether or not it was predicted; best: known, at the best of THRESHOLDS.
    Source: R-Mix Sec. 4.2, Table 5.
    """
    reader = evaluation.trained.dataset.test_boxes
    if reader is None:
        raise Skipped(f"--data {evaluation.trained.options.data} has no boxes; digit-canvas has, and a folder with a "
                      "boxes.csv in its test directory")
    require("scipy.ndimage", "scipy", "localisation")
    everything = reader()
    truth = [everything[i] for i in evaluation.index.tolist()]
    inputs, count = evaluation.trained.inputs, len(truth)
    try:
        first, _ = next(evaluation.split.batches([torch.tensor([0])]))
        cam.class_activation_maps(evaluation.trained.model, inputs(first))
    except cam.NoMaps as error:
        raise Skipped(f"--model {evaluation.trained.options.model}: {error}") from None
    overlaps, right, found = evaluation.zeros(count), evaluation.zeros(count), evaluation.zeros(len(THRESHOLDS))
    for _, rows, images, y in evaluation.batches("localisation"):
        logits, maps = cam.class_activation_maps(evaluation.trained.model, inputs(images))
        heat = cam.normalised(maps[torch.arange(len(y)), y], tuple(images.shape[2:])).cpu()
        right[rows] = (logits.argmax(1) == y).double()
        for i, row in enumerate(rows.tolist()):
            box = cam.largest_box(heat[i], evaluation.threshold)
            overlaps[row] = cam.iou(box, truth[row])
            found += torch.tensor([cam.iou(cam.largest_box(heat[i], t), truth[row]) >= OVERLAP for t in THRESHOLDS],
                                  device=found.device)
            if len(evaluation.examples) < EXAMPLES:
                picture = evaluation.trained.preprocess.displayable(inputs(images[i:i + 1]))[0]
                evaluation.examples.append((picture, heat[i], truth[row], box))
    overlaps, right, found = (evaluation.total(value) for value in (overlaps, right, found))
    known = overlaps >= OVERLAP
    curve = [{"threshold": t, "known": hits / count} for t, hits in zip(THRESHOLDS, found.tolist(), strict=True)]
    return {"threshold": evaluation.threshold, "overlap": OVERLAP, "accuracy": right.mean().item(),
            "top1": (known & right.bool()).double().mean().item(), "known": known.double().mean().item(),
            "mean_iou": overlaps.mean().item(), "best": max(curve, key=lambda entry: entry["known"]), "curve": curve}


PARTS: dict[str, Callable[[Evaluation], dict[str, Any]]] = {
    "calibration": evaluate_calibration, "occlusion": evaluate_occlusion, "attacks": evaluate_attacks,
    "noise": evaluate_noise, "surface": evaluate_surface, "cam": evaluate_localisation}


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
    """The mean; NaN if one of the values was not finite (None)."""
    return math.nan if None in values else statistics.fmean(values)  # type: ignore[arg-type]


def run(name: str, evaluation: Evaluation) -> dict[str, Any]:
    """One part. CommandError if there is not enough memory."""
    try:
        return PARTS[name](evaluation)
    except torch.OutOfMemoryError:
        raise CommandError(f"out of memory in part {name}; try a smaller --batch or --surface-images") from None
