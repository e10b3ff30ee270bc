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
    "crop": (["fill"], lambda **o: F.crop(X, torch.zeros(4, 2, dtype=torch.int64), **o)),
    "resized_crop": (["size", "fill"],
                     lambda **o: F.resized_crop(X, torch.ones(4, 4), **({"size": (4, 4)} | o))),
    "saliency_map": (["grid"], lambda grid: F.saliency_map(X, grid)),
    "saliency_mask": (["grid"], lambda grid: F.saliency_mask(X, grid, torch.tensor(0.5))),
    "pair_weight": (["k", "chance", "variant"], lambda **o: F.pair_weight(torch.rand(4), **o)),
    "View.draw": (["flip", "pad"], lambda **o: View.draw(X, torch.rand(3), torch.rand(3), **o)),
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
    "isda_strength": (["total", "schedule"], lambda **o: isda_strength(0.5, 1, **({"total": 3} | o))),
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
        if (kind == "nan" and option in ("fill", "strength")) or (kind == "tensor" and option == "eps"):
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
