"""The hyper-parameters of the papers: every preset with the table it comes from. Names: paper/METHOD-MODEL-DATA.

What a paper does not state is not invented: it is our default, and the note says so. Batches are those of one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """options: fields of `Options`. claim: what the paper reports. note: what differs from it, or is not in it."""

    name: str
    options: dict[str, Any]
    source: str
    claim: str
    note: str = ""


PRESETS: dict[str, Preset] = {}


def _add(name: str, base: dict[str, Any], source: str, claim: str, note: str = "", **options: Any) -> None:
    name = f"paper/{name}"
    if name in PRESETS:
        raise ValueError(f"preset {name} is defined twice")
    PRESETS[name] = Preset(name, base | options, source, claim, note)


def _steps(epochs: int, *milestones: int, gamma: float = 0.1) -> dict[str, Any]:
    return {"schedule": "multistep", "epochs": epochs, "milestones": milestones, "gamma": gamma}


C10: dict[str, Any] = {"data": "cifar10", "augment": "crop-flip"}
C100: dict[str, Any] = {"data": "cifar100", "augment": "crop-flip"}
IMAGENET: dict[str, Any] = {"data": "folder", "image_size": 224, "augment": "crop-flip"}
TINY: dict[str, Any] = {"data": "folder", "image_size": 64, "augment": "crop-flip"}
CROPS = "crops are of fixed size, not random resized ones"

# ---- K-image mixing (001). CIFAR and ImageNet are trained as in CutMix (Yun et al. 2019), to which the paper refers.
KM = "K-image mixing, Table"
PN110, PN200 = {"model": "pyramidnet110-64"}, {"model": "pyramidnet200-240"}
KM_CIFAR = _steps(300, 150, 225) | {"batch": 64, "lr": 0.25, "weight_decay": 1e-4}
KM_IMAGENET = (IMAGENET | _steps(300, 75, 150, 225)
               | {"model": "torchvision:resnet50", "batch": 256, "lr": 0.1, "weight_decay": 1e-4})
OURS = "alpha of mixup is not stated: 1"
for tag, model, errors in (
        ("pn110-c100", C100 | PN110, {"none": 19.85, "mixup": 18.92, "cutmix": 17.97}),
        ("pn200-c100", C100 | PN200, {"none": 16.45, "label-smoothing": 16.73, "cutout": 16.53, "mixup": 15.63,
                                      "manifold-mixup": 15.09, "cutmix": 14.47}),
        ("pn200-c10", C10 | PN200, {"none": 3.85, "cutout": 3.10, "mixup": 3.09, "manifold-mixup": 3.15,
                                    "cutmix": 2.88})):
    for method, error in errors.items():
        own = {"mixup": {"alpha": 1.0}, "manifold-mixup": {"alpha": 1.0}, "cutmix": {"alpha": 1.0, "prob": 0.5},
               "cutout": {"length": 16}}.get(method, {})
        if method == "label-smoothing":
            own = {"label_smoothing": 0.1}
        remark = {"mixup": OURS, "manifold-mixup": OURS + "; nor are the layers", "cutout": "length is not stated: 16",
                  "label-smoothing": "the amount is not stated: 0.1"}.get(method, "")
        _add(f"{method}-{tag}", KM_CIFAR | model, f"{KM} 1", f"top-1 error {error:.2f} %", remark,
             method="none" if method == "label-smoothing" else method, **own)
_add("dmixup-pn110-c100", KM_CIFAR | C100 | PN110, f"{KM} 1", "top-1 error 18.60 %", method="dmixup", k=3, alpha=1 / 3)
_add("dcutmix-pn110-c100", KM_CIFAR | C100 | PN110, f"{KM} 1", "top-1 error 16.95 %", method="dcutmix", k=5, alpha=0.2)
_add("dmixup-pn200-c100", KM_CIFAR | C100 | PN200, f"{KM} 1", "top-1 error 15.07 %", method="dmixup", k=3, alpha=1.0)
_add("dcutmix-pn200-c100", KM_CIFAR | C100 | PN200, f"{KM} 1", "top-1 error 13.86 %", method="dcutmix", k=5, alpha=1.0)
_add("dmixup-pn200-c10", KM_CIFAR | C10 | PN200, f"{KM} 1", "top-1 error 2.90 %", method="dmixup", k=5, alpha=0.2)
_add("dcutmix-pn200-c10", KM_CIFAR | C10 | PN200, f"{KM} 1", "top-1 error 2.42 %", method="dcutmix", k=3, alpha=1 / 3)

COMIXUP = C100 | _steps(300, 100, 200) | {"batch": 100, "lr": 0.2, "weight_decay": 1e-4}
for tag, name, mixed, cut in (("parn18", "preact-resnet18", 21.68, 20.50), ("wrn16-8", "wrn16-8", 19.13, 18.64),
                              ("rnx29", "resnext29-4-24", 20.09, 20.48)):
    remark = "k and alpha are not stated: {}; training as in Co-Mixup" + (
        "; no such model here yet" if tag == "rnx29" else "")
    _add(f"dmixup-{tag}-c100", COMIXUP, f"{KM} 2", f"top-1 error {mixed:.2f} %", remark.format("3 and 1/3"), model=name,
         method="dmixup", k=3, alpha=1 / 3)
    _add(f"dcutmix-{tag}-c100", COMIXUP, f"{KM} 2", f"top-1 error {cut:.2f} %",
         remark.format("4 (supplement, Table 1) and 1/4"), model=name, method="dcutmix", k=4, alpha=0.25)
for method, error, own in (("none", 23.68, {}), ("mixup", 22.58, {"alpha": 1.0}),
                           ("manifold-mixup", 22.50, {"alpha": 1.0}), ("cutmix", 21.40, {"alpha": 1.0}),
                           ("dmixup", 21.88, {"k": 3, "alpha": 1 / 3}), ("dcutmix", 21.76, {"k": 3, "alpha": 1 / 3}),
                           ("saliency-dcutmix", 21.38, {"k": 3, "alpha": 1 / 3})):
    _add(f"{method}-rn50-imagenet", KM_IMAGENET, f"{KM} 3 (top)", f"top-1 error {error:.2f} %",
         f"{OURS}; {CROPS}" if "mixup" in method and "k" not in own else CROPS, method=method, **own)
for method, errors in (("dcutmix", {3: 21.62, 4: 22.17, 5: 22.02, 7: 22.39, 9: 22.58}),
                       ("saliency-dcutmix", {3: 21.40, 4: 21.55, 5: 21.70, 7: 21.44})):
    for k, error in errors.items():
        _add(f"{method}-k{k}-rn50-imagenet", KM_IMAGENET, f"{KM} 3 (bottom)", f"top-1 error {error:.2f} %", CROPS,
             method=method, k=k, alpha=1.0)

# ---- R-Mix (004). weight decay: the released code.
RM = "R-Mix, Section 4 and Table"
RMIX = C100 | {"epochs": 300, "batch": 100, "schedule": "onecycle", "lr": 0.3, "weight_decay": 1e-4, "method": "rmix",
               "alpha": 1.0, "patches": (2, 4), "levels": 10}
for tag, name, accuracy, epochs in (("parn18", "preact-resnet18", 81.49, 300), ("wrn16-8", "wrn16-8", 82.32, 300),
                                    ("wrn28-10", "wrn28-10", 85.00, 400), ("rnx29", "resnext29-4-24", 83.02, 300)):
    _add(f"rmix-{tag}-c100", RMIX, f"{RM} 4", f"top-1 accuracy {accuracy:.2f} %",
         "no such model here yet" if tag == "rnx29" else "", model=name, epochs=epochs)
_add("cutmix-plus-parn18-c100", {k: v for k, v in RMIX.items() if k not in ("patches", "levels")}, "R-Mix, Table 1",
     "top-1 accuracy 80.60 %", model="preact-resnet18", method="cutmix")
_add("rmix-rn50-imagenet", RMIX | IMAGENET | _steps(100, 40, 65, 90), f"{RM} 5", "top-1 accuracy 77.39 %",
     f"one image size instead of Co-Mixup's three, no warm-up; pairing random, not reversed; {CROPS}",
     model="torchvision:resnet50", alpha=0.2, batch=448, lr=0.2)

# ---- ISDA (002): Table 9 and Section 6.1. Strength 0.5 is what Section 6.5.4 recommends; the best ones are not stated.
ISDA: dict[str, Any] = {"method": "isda", "strength": 0.5, "isda_kind": "full", "isda_schedule": "linear",
                        "momentum": 0.9}
WRN = _steps(240, 60, 120, 160, 200, gamma=0.2) | {"batch": 128, "lr": 0.1, "weight_decay": 5e-4}
RESNET = _steps(160, 80, 120) | {"batch": 128, "lr": 0.1, "weight_decay": 1e-4}
CHOSEN = "strength was chosen from 0.1 to 1 on a validation set"
for tag, name, base, c10, c100, remark in (
        ("resnet32", "resnet32", RESNET, 7.09, 30.27, ""), ("resnet110", "resnet110", RESNET, 6.33, 27.57, ""),
        ("wrn16-8", "wrn16-8", WRN, 4.04, 19.91, ""), ("wrn28-10", "wrn28-10", WRN, 3.58, 17.98, "; without dropout")):
    for data, images, error in (("c10", C10, c10), ("c100", C100, c100)):
        _add(f"isda-{tag}-{data}", ISDA | base | images, "ISDA, Tables 2 and 9", f"error {error:.2f} %",
             CHOSEN + remark, model=name)
for data, images, error in (("c10", C10, 2.83), ("c100", C100, 16.95)):
    _add(f"isda-cutout-wrn28-10-{data}", ISDA | WRN | images, "ISDA, Tables 4 and 9", f"error {error:.2f} %",
         f"{CHOSEN}; the square's side is not stated: 16", model="wrn28-10", length=16)
for tag, name, strength, error in (("rn50", "resnet50", 7.5, 21.9), ("rn101", "resnet101", 5.0, 20.8),
                                   ("rn152", "resnet152", 7.5, 20.3), ("densenet121", "densenet121", 1.0, 23.2),
                                   ("resnext50", "resnext50_32x4d", 7.5, 21.3),
                                   ("resnext101", "resnext101_32x8d", 7.5, 20.1)):
    _add(f"isda-{tag}-imagenet", ISDA | IMAGENET, "ISDA, Table 1 and Appendix A", f"top-1 error {error} %", CROPS,
         model=f"torchvision:{name}", strength=strength, isda_kind="diag", epochs=300, batch=512, schedule="cosine",
         lr=0.2, weight_decay=1e-4)
_add("isda-semi-cnn13-c10", ISDA | C10, "ISDA, Section 6.3 and Appendix B", "",
     "no such model here yet, --model takes another; without the other methods' regularisation, ZCA and translation",
     method="isda-semi", model="cnn13", labelled=4000, consistency=1.0, epochs=400, batch=128, schedule="cosine",
     lr=0.1, weight_decay=1e-4)

# ---- Soft Augmentation (000): Appendix B. sigma 0.3 and k 2 are the methods' defaults.
SA = {"epochs": 500, "batch": 128, "schedule": "cosine", "lr": 0.1}
DECAY = "weight decay is not stated: ours"
for tag, name, errors in (("rn18", "resnet18", {"c10": 3.51, "c100": 18.31}),
                          ("wrn28-10", "wrn28-10", {"c10": 2.85, "c100": 16.47})):
    for data, error in errors.items():
        _add(f"soft-crop-{tag}-{data}", SA | (C10 if data == "c10" else C100), "Soft Augmentation, Table 2",
             f"top-1 error {error:.2f} %", DECAY, model=name, method="soft-crop", augment="auto")
for method, error, own in (("none", "20.80", {}), ("label-smoothing", "19.47", {}), ("focal", "20.38", {}),
                           ("mixup", "19.88", {"alpha": 1.0}), ("cutout", "20.51", {"length": 8})):
    _add(f"{method}-rn18-c100", SA | C100, "Soft Augmentation, Tables 1 and 5", f"top-1 error {error} %", DECAY,
         model="resnet18", method=method, **own)
_add("soft-noise-rn18-c100", SA | C100, "Soft Augmentation, Table 6", "top-1 error 19.20 %", DECAY, model="resnet18",
     method="soft-noise")
for tag, name, error in (("rn50", "resnet50", "21.66"), ("rn101", "resnet101", "20.63")):
    _add(f"soft-resized-crop-{tag}-imagenet", IMAGENET, "Soft Augmentation, Table 2 and B.3", f"top-1 error {error} %",
         DECAY, model=f"torchvision:{name}", method="soft-resized-crop", epochs=270, warmup=5, batch=256,
         schedule="cosine", lr=0.1, augment="auto")

# ---- Refined data augmentation (003): N epochs with mixing, M without.
RDA = "Refined data augmentation, Table"
RDA_PARN = (_steps(450, 150, 275) | {"model": "preact-resnet18", "batch": 128, "lr": 0.1, "weight_decay": 1e-4,
                                     "refine_epochs": 50})
RDA_WRN = (_steps(450, 120, 240, 320, gamma=0.2) | {"model": "wrn28-10", "batch": 128, "lr": 0.2, "weight_decay": 5e-4,
                                                    "refine_epochs": 50})
for tag, base, accuracies in (
        ("parn18", RDA_PARN, {"mixup": (96.4, 80.8), "manifold-mixup": (96.0, 81.5), "cutmix": (96.4, 80.6)}),
        ("wrn28-10", RDA_WRN, {"mixup": (97.5, 84.6), "manifold-mixup": (97.4, 84.6), "cutmix": (97.3, 83.5)})):
    for method, pair in accuracies.items():
        for data, images, accuracy in (("c10", C10, pair[0]), ("c100", C100, pair[1])):
            _add(f"refined-{method}-{tag}-{data}", base | images, f"{RDA} 1", f"accuracy {accuracy} %",
                 "layers are not stated" if method == "manifold-mixup" else "", method=method, alpha=1.0,
                 prob=0.5 if method == "cutmix" else 1.0)
for method, own, tag, accuracy in (
        ("mixup", {"alpha": 0.2}, "-alpha0.2", 64.20), ("mixup", {"alpha": 0.5}, "-alpha0.5", 65.08),
        ("manifold-mixup", {"alpha": 0.2}, "-alpha0.2", 64.33), ("manifold-mixup", {"alpha": 0.5}, "-alpha0.5", 65.80),
        ("cutmix", {"prob": 0.5}, "-prob0.5", 65.59), ("cutmix", {"prob": 1.0}, "-prob1", 65.87)):
    _add(f"refined-{method}{tag}-parn18-tiny", RDA_PARN | TINY, f"{RDA} 4", f"accuracy {accuracy:.2f} % (last)",
         method=method, **own)
for tag, name, alpha, accuracy in (("rn50", "resnet50", 0.2, 77.69), ("rn50", "resnet50", 0.5, 77.65),
                                   ("rn101", "resnet101", 0.5, 79.61)):
    _add(f"refined-mixup-alpha{alpha}-{tag}-imagenet", IMAGENET | _steps(220, 60, 120, 180), f"{RDA} 5",
         f"top-1 accuracy {accuracy} %", f"{CROPS}; weight decay is not stated: 1e-4", model=f"torchvision:{name}",
         method="mixup", alpha=alpha, batch=256, lr=0.1, weight_decay=1e-4, refine_epochs=20, refine_lr=1e-4)
