"""Segmentation, plain, with ISDA and with CutMix: digits scattered over noisy canvases, a class for every pixel.

    python examples/segmentation.py [--canvases 20] [--steps 600] [--seeds 3] [--strength 0.5]

Prints the mean intersection over union on held-out canvases, background included, for plain cross-entropy, for
`fastmix.ISDALoss` with a diagonal covariance per class and for `fastmix.CutMix` of images and label maps, and what the
two add seed by seed: all share canvases, first weights and batches. With six seeds plain cross-entropy came to 36.1 %,
CutMix added 2.0 % (+- 0.8), ISDA 0.05 % (+- 0.17). Needs scikit-learn, for its 1,797 embedded digits.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor, nn

import fastmix
from fastmix.app import data

CLASSES, FEATURES, SIDE, DIGITS, BATCH = 11, 32, 32, 5, 8  # the ten digits and the background


def canvases(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 1, SIDE, SIDE) floats and (count, SIDE, SIDE) labels: class + 1 where a digit's ink is, else 0.

    images: (n, 1, 8, 8) uint8. The rim of a digit, too faint to call, has label 255 and counts nothing.
    """
    x = 0.15 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    y = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    images = images.float() / images.max()
    side = images.shape[-1]
    for i in range(count):
        for k in torch.randint(0, len(images), (DIGITS,), generator=generator).tolist():
            top, left = torch.randint(0, SIDE - side + 1, (2,), generator=generator).tolist()
            ink = images[k, 0]
            here = (i, slice(top, top + side), slice(left, left + side))
            x[here[0], 0, here[1], here[2]] += ink
            y[here] = torch.where(ink > 0.5, labels[k] + 1, torch.where(ink > 0.2, 255, y[here]))
    return x, y


def network() -> nn.Sequential:
    """Everything but the last 1x1 convolution."""
    layers: list[nn.Module] = []
    for inputs, dilation in ((1, 1), (FEATURES, 2), (FEATURES, 2), (FEATURES, 2)):
        layers += [nn.Conv2d(inputs, FEATURES, 3, padding=dilation, dilation=dilation, bias=False),
                   nn.BatchNorm2d(FEATURES), nn.ReLU()]
    return nn.Sequential(*layers)


@torch.no_grad()
def mean_iou(body: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> float:
    body.eval()
    predicted = torch.cat([head(body(part)).argmax(1) for part in x.split(20)])
    counted = y != 255
    matrix = torch.bincount(y[counted] * CLASSES + predicted[counted], minlength=CLASSES ** 2).view(CLASSES, CLASSES)
    hit = matrix.diagonal().double()
    return (hit / (matrix.sum(0) + matrix.sum(1) - hit).clamp(min=1)).mean().item()


def train(method: str, seed: int, count: int, steps: int, strength: float) -> float:
    digits = data.load("digits")
    x, y = canvases(digits.train.images, digits.train.labels, count, torch.Generator().manual_seed(1 + seed))
    held_out = canvases(digits.test.images, digits.test.labels, 100, torch.Generator().manual_seed(2))
    torch.manual_seed(seed)
    body, head = network(), nn.Conv2d(FEATURES, CLASSES, 1)
    # Draws of its own, so that every method sees the same batches.
    cutmix = fastmix.CutMix(generator=torch.Generator().manual_seed(seed))
    cross_entropy = fastmix.SoftCrossEntropy(ignore_index=255)
    isda = fastmix.ISDALoss(FEATURES, CLASSES, "diag", ignore_index=255)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    body.train()
    for step in range(steps):
        index = torch.randint(0, len(x), (BATCH,))
        images, maps = x[index], y[index]
        if method == "isda":
            loss, _ = isda(body(images), head, maps, fastmix.isda_strength(strength, step, steps))
        elif method == "cutmix":
            images, target = cutmix(images, maps)  # the boxes cut out of the images are cut out of their label maps
            loss = cross_entropy(head(body(images)), target)
        else:
            loss = cross_entropy(head(body(images)), maps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return mean_iou(body, head, *held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canvases", type=int, default=20, help="to train on; ISDA is for few")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strength", type=float, default=0.5, help="of ISDA at the end")
    args = parser.parse_args()
    found: dict[str, list[float]] = {"plain": [], "isda": [], "cutmix": []}
    for seed in range(args.seeds):
        for name, values in found.items():
            values.append(100 * train(name, seed, args.canvases, args.steps, args.strength))
    for name in ("isda", "cutmix"):
        found[f"{name} - plain"] = [got - plain for got, plain in zip(found[name], found["plain"], strict=True)]
    for name, values in found.items():
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"{name:<14} mIoU {statistics.fmean(values):.2f} %{spread} ({len(values)} seeds)")


if __name__ == "__main__":
    main()
