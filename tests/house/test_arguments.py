"""Options of public names that are no numbers or names: one line names the argument, what it is and what was wanted."""

import inspect
import re

import numpy as np
import pytest
import torch

import fastmix
import fastmix.functional as F
from fastmix import SoftTarget, View
from fastmix.losses.isda import isda_strength
from fastmix.subsampling import subsample

Z, Y, X = torch.randn(4, 3), torch.arange(4) % 3, torch.randn(4, 3, 8, 8)
W, COV = torch.randn(3, 2), torch.rand(3, 2)
STATE = (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(3, 2))

MODEL = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))

# Call by an option's name -> (the options that are numbers or names, the call).
CALLS = {
    "soft_cross_entropy": (["label_smoothing", "ignore_index", "reduction"],
                           lambda **o: F.soft_cross_entropy(Z, Y, **o)),
    "soft_kl": (["label_smoothing", "ignore_index", "reduction"], lambda **o: F.soft_kl(Z, Y, **o)),
    "soft_target_kl": (["weighting", "ignore_index", "reduction"],
                       lambda **o: F.soft_target_kl(Z, Y, torch.rand(4), **o)),
    "soft_bce": (["ignore_index", "reduction"], lambda **o: F.soft_bce(Z, Y, **o)),
    "isda_logits": (["strength", "ignore_index"],
                    lambda **o: F.isda_logits(Z, W, COV, Y, **({"strength": 0.5} | o), kind="diag")),
    "isda_consistency": (["strength", "reduction"],
                         lambda **o: F.isda_consistency(Z, W, COV, **({"strength": 0.5} | o), kind="diag")),
    "covariance_update_": (["ignore_index"],
                           lambda **o: F.covariance_update_(*STATE, torch.randn(4, 2), Y, kind="diag", **o)),
    "explicit_sda": (["strength", "samples", "generator", "ignore_index"], lambda **o: F.explicit_sda(
        torch.randn(4, 2), W, None, COV, Y, **({"strength": 0.5, "samples": 2} | o), kind="diag")),
    "visibility": (["size"], lambda size: F.visibility(torch.zeros(4, 2, dtype=torch.int64), size)),
    "confidence": (["k", "chance"], lambda **o: F.confidence(torch.rand(4), **({"k": 2, "chance": 0.1} | o))),
    "paste_areas": (["size"], lambda size: F.paste_areas(torch.zeros(4, 1, 4, dtype=torch.int32), size)),
    "crop": (["fill"], lambda **o: F.crop(X, torch.zeros(4, 2, dtype=torch.int64), **o)),
    "resized_crop": (["size", "fill"],
                     lambda **o: F.resized_crop(X, torch.ones(4, 4), **({"size": (4, 4)} | o))),
    "saliency_map": (["grid"], lambda grid: F.saliency_map(X, grid)),
    "saliency_mask": (["grid"], lambda grid: F.saliency_mask(X, grid, torch.tensor(0.5))),
    "pair_weight": (["k", "chance", "variant", "normalise"], lambda **o: F.pair_weight(torch.rand(4), **o)),
    "View.draw": (["flip", "pad", "generator"], lambda **o: View.draw(X, torch.rand(3), torch.rand(3), **o)),
    "SoftTarget.smooth": (["eps", "num_classes"],
                          lambda **o: SoftTarget.from_labels(Y).smooth(**({"eps": 0.1, "num_classes": 3} | o))),
    "SoftTarget.from_confidence": (["num_classes"], lambda **o: SoftTarget.from_confidence(Y, torch.rand(4), **o)),
    "Mixup": (["alpha", "prob", "mode", "generator"], fastmix.Mixup),
    "CutMix": (["alpha", "prob", "mode", "generator"], fastmix.CutMix),
    "DMixup": (["k", "alpha", "prob", "generator"], fastmix.DMixup),
    "DCutMix": (["k", "alpha", "prob", "generator"], fastmix.DCutMix),
    "Cutout": (["length", "prob", "mode", "generator"], fastmix.Cutout),
    "RMix": (["alpha", "patches", "levels", "pairing", "prob", "generator"], fastmix.RMix),
    "RLMix": (["alpha", "patches", "levels", "pairing", "prob", "generator"], fastmix.RLMix),
    "RandomChoice": (["prob"], lambda **o: fastmix.RandomChoice([fastmix.Mixup()], **o)),
    "SoftCrop": (["num_classes", "sigma", "k", "chance", "fill", "prob"],
                 lambda **o: fastmix.SoftCrop(**({"num_classes": 3} | o))),
    "SoftResizedCrop": (["num_classes", "size", "sigma", "min_size", "k", "chance", "fill", "prob"],
                        lambda **o: fastmix.SoftResizedCrop(**({"num_classes": 3} | o))),
    "SoftNoise": (["num_classes", "sigma", "k", "chance", "noise_sigma", "prob"],
                  lambda **o: fastmix.SoftNoise(**({"num_classes": 3} | o))),
    "SoftCrossEntropy": (["label_smoothing", "ignore_index", "reduction"], fastmix.SoftCrossEntropy),
    "SoftTargetKL": (["weighting", "ignore_index", "reduction"], fastmix.SoftTargetKL),
    "SoftBCE": (["ignore_index", "reduction"], fastmix.SoftBCE),
    "FocalLoss": (["gamma", "ignore_index", "reduction"], fastmix.FocalLoss),
    "ISDALoss": (["num_features", "num_classes", "kind", "label_smoothing", "ignore_index"],
                 lambda **o: fastmix.ISDALoss(**({"num_features": 2, "num_classes": 3} | o))),
    "isda_strength": (["strength0", "step", "total", "schedule"],
                      lambda **o: isda_strength(**({"strength0": 0.5, "step": 1, "total": 3} | o))),
    "SoftTarget.hard": (["ignore_index"], lambda **o: SoftTarget.from_labels(Y).hard(**o)),
    "SoftTarget.dense": (["num_classes"], lambda **o: SoftTarget.from_labels(Y).dense(**o)),
    "input_saliency": (["model", "loss_fn"],
                       lambda **o: F.input_saliency(**({"model": MODEL, "x": X, "y": Y} | o))),
    "risk_gap": (["model", "mixer"],
                 lambda **o: fastmix.risk_gap(**({"model": MODEL, "loader": [(X, Y)], "mixer": None} | o))),
    "uncertainty": (["model", "samples", "batch_size", "seed", "state", "progress"],
                    lambda **o: fastmix.uncertainty(**({"model": MODEL, "dataset": [(X[0], 0)] * 4} | o))),
    "Refinement": (["epochs", "refine_epochs", "lr"],
                   lambda **o: fastmix.Refinement(**({"epochs": 3, "refine_epochs": 1} | o))),
    "subsample": (["ratio", "interval"],
                  lambda **o: subsample(torch.rand(4), Y, **({"ratio": 0.5, "interval": 1} | o))),
}
# Strings are names in some places, numbers nowhere; a pair of numbers belongs to the sizes.
WRONG = {"list": [0.5], "dict": {"a": 1}, "text": "0.5", "array": np.array([1, 2, 3]), "tensor": torch.rand(2, 2),
         "bool": True, "none of these": object(), "complex": 0.5j, "nan": float("nan"), "large": 10**400}
OPTIONS = [(name, option) for name, (options, _) in CALLS.items() for option in options]


@pytest.mark.parametrize("name,option", OPTIONS)
def test_an_option_that_is_none(name, option):
    called = "ISDACovariance" if name == "ISDALoss" else name  # the module that keeps them
    for kind, value in WRONG.items():
        # A NaN is a number for what only colours pixels or scales a bound.
        if kind == "nan" and option in ("fill", "strength", "strength0", "step"):
            continue
        if (kind == "tensor" and option == "eps") or (kind == "bool" and option == "normalise"):
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            CALLS[name][1](**{option: value})
        text = str(caught.value)
        assert re.match(rf"({re.escape(name)}|{called}): {option}\b.* (is|has) ", text), (kind, text)
        assert "want" in text and "\n" not in text and len(text) < 250, (kind, text)


def test_every_public_class_and_loss_is_here():
    """A new one comes with its options, or with the reason why it has none that could be wrong."""
    without = {"Mixer", "Compose", "View", "SoftTarget", "ManifoldMixup", "AnchoredDCutMix", "ISDACovariance",
               "SaliencyDCutMix"}
    for name in fastmix.__all__:
        found = getattr(fastmix, name)
        if inspect.isclass(found) and issubclass(found, torch.nn.Module):
            assert name in CALLS or name in without, name


@pytest.mark.parametrize("layout", ["sparse", "nested", "quantized", "mkldnn"])
def test_tensors_that_are_not_plain(layout):
    make = {"sparse": lambda t: t.to_sparse(), "nested": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
            "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "mkldnn": lambda t: t.to_mkldnn()}
    odd = make[layout](torch.rand(4, 3))
    for call, name in ((lambda: F.soft_cross_entropy(odd, Y), "logits"),
                       (lambda: F.blend(odd, torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1)), "x"),
                       (lambda: F.isda_logits(odd, W, COV, Y, 0.5, kind="diag"), "logits"),
                       (lambda: F.soft_cross_entropy(Z, Y, sample_weight=odd), "sample_weight")):
        with pytest.raises(TypeError, match=rf"{name} is a (sparse_coo|nested|quantized|mkldnn) tensor, want a plain"):
            call()


def test_weights_that_are_no_real_numbers():
    with pytest.raises(TypeError, match="sample_weight has dtype complex64, want float32"):
        F.soft_cross_entropy(Z, Y, sample_weight=torch.ones(4, dtype=torch.complex64))


@pytest.mark.parametrize("data", [None, 3, [3], [(X, 1)]], ids=str)
def test_data_that_are_no_batches(data):
    with pytest.raises(TypeError, match=r"risk_gap: loader (is|gives) .*, want batches"):
        fastmix.risk_gap(MODEL, data, None)
    with pytest.raises((TypeError, ValueError), match=r"uncertainty: (dataset|len\(dataset\)) (is|gives) .*, want "):
        fastmix.uncertainty(MODEL, [] if isinstance(data, list) else data)


@pytest.mark.parametrize("value", ["text", None, torch.tensor(True), [True], 1], ids=str)
def test_switches(value):
    mixer = fastmix.Mixup()
    for option in ("create_graph", "update_stats"):
        with pytest.raises(TypeError, match=f"input_saliency: {option} is .*, want True or False"):
            F.input_saliency(MODEL, X, Y, **{option: value})
    with pytest.raises(TypeError, match=r"Mixup: enabled is .*, want True or False"):
        mixer.enabled = value
    with pytest.raises(TypeError, match=r"set_debug: on is .*, want True or False"):
        fastmix.set_debug(value)


def test_numbers_that_float32_holds_as_zero():
    """Beyond its smallest one the shares of a Dirichlet distribution would be NaN on one backend and not on another."""
    for value in (5e-324, 1e-40):
        with pytest.raises(ValueError, match=r"Mixup: alpha is .*, want a finite number above 0 that float32 holds"):
            fastmix.Mixup(value)


def test_fills_that_a_mask_does_not_hold():
    shift, masks = torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 3, 3, dtype=torch.uint8)
    for wrong, kind in ((300, ValueError), (-1, ValueError), (0.5, TypeError), ("0", TypeError), (None, TypeError)):
        with pytest.raises(kind, match=r"crop: fill is .*, want a whole number for a mask of dtype uint8"):
            F.crop(masks, shift, fill=wrong)
        if wrong is not None:
            with pytest.raises(kind, match=r"View.apply_mask: fill is .*, want a whole number for a mask"):
                View(torch.rand(3), torch.rand(3), None, shift).apply_mask(masks, wrong)
            with pytest.raises(kind, match=r"CropPlan.apply: outside is .*, want a whole number for a mask"):
                fastmix.mixers.plans.CropPlan(shift, torch.rand(1), torch.rand(1), 0.0).apply(masks, outside=wrong)
    assert F.crop(masks, shift, fill=2.0)[0, 2, 2] == 2
    assert F.crop(masks.bool(), shift, fill=True)[0, 2, 2]
