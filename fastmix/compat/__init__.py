"""Other libraries' classes on fastmix's kernels: one import line changes, names, arguments and results stay.

    from fastmix.compat.timm import Mixup, SoftTargetCrossEntropy  # from timm.data and timm.loss
    from fastmix.compat.torchvision import CutMix, MixUp           # from torchvision.transforms.v2
    from fastmix.compat.losses import CrossEntropyLoss             # from torch.nn

Every class is a subclass of the one it stands for, draws by the same generators in the same order, and so mixes the
same images of the same seed, up to rounding. What a kernel has no form for, the original's own code does. `patch`
replaces the classes where the code that names them cannot be changed.
"""

from .patching import patch, unpatch

__all__ = ["patch", "unpatch"]
