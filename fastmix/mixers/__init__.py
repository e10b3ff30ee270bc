"""The mixers: modules that draw a plan for a batch on its device and apply it.

    mixer = fastmix.DCutMix(k=3, alpha=0.2)
    mixed, target = mixer(x, y)               # or plan = mixer.plan(x); plan.apply(x), plan.target(y)
    loss = fastmix.functional.soft_cross_entropy(model(mixed), target)

Nothing here waits for the device: a step with a mixer runs under ``torch.compile(fullgraph=True)`` and in a CUDA graph,
whose replays draw new plans. `RandomChoice` alone decides on the host.
"""

from .base import Mixer
from .boxes import CutMix, Cutout, DCutMix, SaliencyDCutMix
from .groups import Compose, RandomChoice
from .labels import Labels, Target
from .manifold import ManifoldMixup
from .pairs import DMixup, Mixup
from .patches import RLMix, RMix
from .plans import (
    BlendPlan,
    ComposePlan,
    CropPlan,
    CutoutPlan,
    NoisePlan,
    PastePlan,
    PatchPlan,
    Plan,
    ResizedCropPlan,
)
from .soft import SoftCrop, SoftNoise, SoftResizedCrop

__all__ = ["BlendPlan", "Compose", "ComposePlan", "CropPlan", "CutMix", "Cutout", "CutoutPlan", "DCutMix", "DMixup",
           "Labels", "ManifoldMixup", "Mixer", "Mixup", "NoisePlan", "PastePlan", "PatchPlan", "Plan", "RLMix", "RMix",
           "RandomChoice", "ResizedCropPlan", "SaliencyDCutMix", "SoftCrop", "SoftNoise", "SoftResizedCrop", "Target"]
