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
LAYERS = "layers are not stated: ours"
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
        remark = {"mixup": OURS, "manifold-mixup": f"{OURS}; {LAYERS}", "cutout": "length is not stated: 16",
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
    remark = "k and alpha are not stated: {}; training as in Co-Mixup"
    _add(f"dmixup-{tag}-c100", COMIXUP, f"{KM} 2", f"top-1 error {mixed:.2f} %", remark.format("3 and 1/3"), model=name,
         method="dmixup", k=3, alpha=1 / 3)
    _add(f"dcutmix-{tag}-c100", COMIXUP, f"{KM} 2", f"top-1 error {cut:.2f} %",
         remark.format("4 (supplement, Table 1) and 1/4"), model=name, method="dcutmix", k=4, alpha=0.25)
for method, error, own in (("none", 23.68, {}), ("mixup", 22.58, {"alpha": 1.0}),
                           ("manifold-mixup", 22.50, {"alpha": 1.0}), ("cutmix", 21.40, {"alpha": 1.0}),
                           ("dmixup", 21.88, {"k": 3, "alpha": 1 / 3}), ("dcutmix", 21.76, {"k": 3, "alpha": 1 / 3}),
                           ("saliency-dcutmix", 21.38, {"k": 3, "alpha": 1 / 3})):
    _add(f"{method}-rn50-imagenet", KM_IMAGENET, f"{KM} 3 (top)", f"top-1 error {error:.2f} %",
         "; ".join({"mixup": (OURS, CROPS), "manifold-mixup": (OURS, LAYERS, CROPS)}.get(method, (CROPS,))),
         method=method, **own)
for method, errors in (("dcutmix", {3: 21.62, 4: 22.17, 5: 22.02, 7: 22.39, 9: 22.58}),
                       ("saliency-dcutmix", {3: 21.40, 4: 21.55, 5: 21.70, 7: 21.44})):
    for k, error in errors.items():
        _add(f"{method}-k{k}-rn50-imagenet", KM_IMAGENET, f"{KM} 3 (bottom)", f"top-1 error {error:.2f} %", CROPS,
             method=method, k=k, alpha=1.0)

# ---- R-Mix (004).
RM = "R-Mix, Section 4 and Table"
RMIX = C100 | {"epochs": 300, "batch": 100, "schedule": "onecycle", "lr": 0.3, "weight_decay": 1e-4, "method": "rmix",
               "alpha": 1.0, "patches": (2, 4), "levels": 10}
PLAIN = {name: value for name, value in RMIX.items() if name not in ("patches", "levels")}
DECAYED = "weight decay is the released code's"
for tag, name, plus, accuracy, learnt, epochs in (
        ("parn18", "preact-resnet18", 80.60, 81.49, 80.75, 300), ("wrn16-8", "wrn16-8", 81.79, 82.32, 82.16, 300),
        ("wrn28-10", "wrn28-10", 83.97, 85.00, 84.90, 400), ("rnx29", "resnext29-4-24", 82.30, 83.02, 82.43, 300)):
    longer = "; 400 epochs as Section 4.1 says, 300 in the table's title" if epochs == 400 else ""
    _add(f"rmix-{tag}-c100", RMIX, f"{RM} 4", f"top-1 accuracy {accuracy:.2f} %", DECAYED + longer, model=name,
         epochs=epochs)
    _add(f"cutmix-plus-{tag}-c100", PLAIN, "R-Mix, Tables 1 and 2", f"top-1 accuracy {plus:.2f} %",
         f"{DECAYED}; alpha and probability of CutMix are not stated: 1", model=name, method="cutmix", epochs=epochs)
    _add(f"rlmix-{tag}-c100", PLAIN, "R-Mix, Section 5.2 and Table 9", f"top-1 accuracy {learnt:.2f} %",
         f"{DECAYED}; alpha and levels are not stated: those of R-Mix{longer}", model=name, method="rlmix", grid=8,
         levels=10, epochs=epochs)
_add("rmix-rn50-imagenet", RMIX | IMAGENET | _steps(100, 40, 65, 90), f"{RM} 5", "top-1 accuracy 77.39 %",
     "steps, rate and batch are not stated but those of Co-Mixup, with one image size instead of three and no warm-up; "
     f"pairing random, not reversed; {CROPS}",
     model="torchvision:resnet50", alpha=0.2, batch=448, lr=0.2)

# ---- ISDA (002): Table 9 and Section 6.1. Strength 0.5 is what Section 6.5.4 recommends; the best ones are not stated.
ISDA: dict[str, Any] = {"method": "isda", "strength": 0.5, "isda_kind": "full", "isda_schedule": "linear",
                        "momentum": 0.9}
WRN = _steps(240, 60, 120, 160, 200, gamma=0.2) | {"batch": 128, "lr": 0.1, "weight_decay": 5e-4}
RESNET = _steps(160, 80, 120) | {"batch": 128, "lr": 0.1, "weight_decay": 1e-4}
SE_RESNET = RESNET | _steps(200, 80, 120, 160)
RESNEXT = _steps(350, 150, 225, 300) | {"batch": 128, "lr": 0.05, "weight_decay": 5e-4}
DENSENET = _steps(300, 150, 200, 250) | {"batch": 64, "lr": 0.1, "weight_decay": 1e-4}
SHAKE = {"schedule": "cosine", "epochs": 1800, "batch": 64, "lr": 0.1, "weight_decay": 1e-4}
CHOSEN = "strength was chosen from 0.1 to 1 on a validation set"
for tag, name, base, c10, c100, remark in (
        ("resnet32", "resnet32", RESNET, 7.09, 30.27, ""), ("resnet110", "resnet110", RESNET, 6.33, 27.57, ""),
        ("se-resnet110", "se-resnet110", SE_RESNET, 5.96, 26.63, ""), ("wrn16-8", "wrn16-8", WRN, 4.04, 19.91, ""),
        ("wrn28-10", "wrn28-10", WRN, 3.58, 17.98, "; without dropout"),
        ("resnext29-8x64d", "resnext29-8-64", RESNEXT, 3.67, 17.43, ""),
        ("densenet-bc100-12", "densenet-bc100-12", DENSENET, 4.54, 22.10, ""),
        ("shake-shake-2x32d", "shake-shake26-32", SHAKE, 3.20, 19.45, ""),
        ("shake-shake-2x112d", "shake-shake26-112", SHAKE, 2.61, 16.73, "")):
    for data, images, error in (("c10", C10, c10), ("c100", C100, c100)):
        _add(f"isda-{tag}-{data}", ISDA | base | images, "ISDA, Tables 2 and 9", f"error {error:.2f} %",
             CHOSEN + remark, model=name)
for tag, name, base, errors in (
        ("wrn28-10", "wrn28-10", WRN, {"cutout": (2.83, 16.95), "rand": (2.42, 15.97)}),
        ("shake-shake-2x32d", "shake-shake26-32", SHAKE, {"cutout": (2.93, 18.17), "rand": (2.74, 17.84)}),
        ("shake-shake-2x112d", "shake-shake26-112", SHAKE, {"cutout": (2.25, 16.24), "rand": (1.76, 14.24)})):
    for policy, pair in errors.items():
        own = {"length": 16} if policy == "cutout" else {"augment": "rand"}
        remark = "the square's side is not stated: 16" if policy == "cutout" else "RandAugment is torchvision's"
        remark += "; without dropout" if tag == "wrn28-10" else ""
        for data, images, error in (("c10", C10, pair[0]), ("c100", C100, pair[1])):
            _add(f"isda-{policy}-{tag}-{data}", ISDA | base | images, "ISDA, Tables 4 and 9", f"error {error:.2f} %",
                 f"{CHOSEN}; {remark}", model=name, **own)
# Appendix A: weight decay as on CIFAR, which is 5e-4 for ResNeXt.
for tag, name, strength, error in (("rn50", "resnet50", 7.5, 21.9), ("rn101", "resnet101", 5.0, 20.8),
                                   ("rn152", "resnet152", 7.5, 20.3), ("densenet121", "densenet121", 1.0, 23.2),
                                   ("resnext50", "resnext50_32x4d", 7.5, 21.3),
                                   ("resnext101", "resnext101_32x8d", 7.5, 20.1)):
    _add(f"isda-{tag}-imagenet", ISDA | IMAGENET, "ISDA, Table 1 and Appendix A", f"top-1 error {error} %", CROPS,
         model=f"torchvision:{name}", strength=strength, isda_kind="diag", epochs=300, batch=512, schedule="cosine",
         lr=0.2, weight_decay=5e-4 if tag.startswith("resnext") else 1e-4)
_add("isda-semi-cnn13-c10", ISDA | C10, "ISDA, Section 6.3 and Appendix B", "",
     "Table 6 has it on top of other methods, with ZCA and translation; here it is alone",
     method="isda-semi", model="cnn13", labelled=4000, consistency=1.0, epochs=400, batch=128, schedule="cosine",
     lr=0.1, weight_decay=1e-4)

# ---- Soft Augmentation (000): Appendix B. sigma 0.3 and k 2 are the methods' defaults. B.1: sigma falls to a
# thousandth for the last 20 epochs on CIFAR-100, and not on CIFAR-10.
SA = {"epochs": 500, "batch": 128, "schedule": "cosine", "lr": 0.1}
DECAY = "weight decay is not stated: ours"
SA_DATA = {"c10": (C10, {}), "c100": (C100, {"sigma_decay": 20})}
for tag, name, own, rows in (
        ("efficientnet-b0", "torchvision:efficientnet_b0", {"lr": 0.025},
         {"c100": (49.70, 42.13, 46.68, 38.72), "c10": (17.73, 12.21, 14.54, 11.67)}),
        ("rn18", "resnet18", {}, {"c100": (20.80, 18.31, 20.99, 18.10), "c10": (4.38, 3.51, 3.89, 3.27)}),
        ("rn50", "resnet50", {}, {"c100": (20.18, 18.06, 18.57, 16.72), "c10": (4.34, 3.67, 3.91, 3.01)}),
        ("wrn28-10", "wrn28-10", {}, {"c100": (18.60, 16.47, 17.65, 15.37), "c10": (3.67, 2.85, 3.26, 2.45)}),
        ("pn272-shakedrop", "pyramidnet272-200-shakedrop", {},
         {"c100": (15.77, 14.03, 14.02, 12.78), "c10": (2.86, 2.26, 2.32, 2.02)})):
    for data, errors in rows.items():
        images, decay = SA_DATA[data]
        remark = DECAY + ("; alpha is not stated: 200" if tag == "pn272-shakedrop" else "")
        for method, policy, error in zip(("none", "soft-crop", "none", "soft-crop"), ("", "", "rand", "rand"), errors,
                                         strict=True):
            _add("-".join(filter(None, (method, policy, tag, data))), SA | images | own,
                 "Soft Augmentation, Table 2 and B.1", f"top-1 error {error:.2f} %",
                 f"{remark}; RandAugment is torchvision's" if policy else remark, model=name, method=method,
                 augment=policy or ("auto" if method == "soft-crop" else "crop-flip"),
                 **(decay if method == "soft-crop" else {}))
for data, error in (("c100", 14.24), ("c10", 2.23)):
    images, decay = SA_DATA[data]
    _add(f"soft-crop-trivial-wrn28-10-{data}", SA | images, "Soft Augmentation, Table 3 and B.1",
         f"top-1 error {error:.2f} %", f"{DECAY}; TrivialAugment is torchvision's", model="wrn28-10",
         method="soft-crop", augment="trivial", **decay)
for method, error, own in (("label-smoothing", "19.47", {}), ("focal", "20.38", {"focal_gamma": 2.0}),
                           ("mixup", "19.88", {"alpha": 1.0}), ("cutout", "20.51", {"length": 8})):
    _add(f"{method}-rn18-c100", SA | C100, "Soft Augmentation, Tables 1 and 5", f"top-1 error {error} %",
         f"{DECAY}; the amount is not stated: 0.1" if method == "label-smoothing" else DECAY, model="resnet18",
         method=method, **own)
_add("soft-noise-rn18-c100", SA | C100, "Soft Augmentation, Table 6 and B.1", "top-1 error 19.20 %", DECAY,
     model="resnet18", method="soft-noise", sigma_decay=20)
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
                 LAYERS if method == "manifold-mixup" else "", method=method, alpha=1.0,
                 prob=0.5 if method == "cutmix" else 1.0)
RDA_SHAKE = C100 | {"model": "shake-shake26-96", "epochs": 2000, "batch": 128, "schedule": "cosine", "lr": 0.01,
                    "weight_decay": 1e-3, "refine_epochs": 200, "refine_lr": 1e-4}
for method, prob, accuracy in (("mixup", 1.0, 85.2), ("cutmix", 0.5, 84.7)):
    _add(f"refined-{method}-shake-shake-2x96d-c100", RDA_SHAKE, f"{RDA} 1", f"accuracy {accuracy} %",
         "the rate of the refinement is not stated: 1e-4", method=method, alpha=1.0, prob=prob)
for method, own, tag, accuracy in (
        ("mixup", {"alpha": 0.2}, "-alpha0.2", 64.20), ("mixup", {"alpha": 0.5}, "-alpha0.5", 65.08),
        ("manifold-mixup", {"alpha": 0.2}, "-alpha0.2", 64.33), ("manifold-mixup", {"alpha": 0.5}, "-alpha0.5", 65.80),
        ("cutmix", {"prob": 0.5}, "-prob0.5", 65.59), ("cutmix", {"prob": 1.0}, "-prob1", 65.87)):
    _add(f"refined-{method}{tag}-parn18-tiny", RDA_PARN | TINY, f"{RDA} 4", f"accuracy {accuracy:.2f} % (last)",
         LAYERS if method == "manifold-mixup" else "", method=method, **own)
for tag, name, alpha, accuracy in (("rn50", "resnet50", 0.2, 77.69), ("rn50", "resnet50", 0.5, 77.65),
                                   ("rn101", "resnet101", 0.5, 79.61)):
    _add(f"refined-mixup-alpha{alpha}-{tag}-imagenet", IMAGENET | _steps(220, 60, 120, 180), f"{RDA} 5",
         f"top-1 accuracy {accuracy} %", f"{CROPS}; weight decay is not stated: 1e-4", model=f"torchvision:{name}",
         method="mixup", alpha=alpha, batch=256, lr=0.1, weight_decay=1e-4, refine_epochs=20, refine_lr=1e-4)
