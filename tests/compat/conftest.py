"""Peers are imported as the program imports them: PyPI's torchvision needs help beside a CPU build of torch."""

from fastmix.app import import_torchvision

import_torchvision.prepare()
