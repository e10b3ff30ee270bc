"""The streams of random numbers: every use of randomness in the program has a number of its own here.

A generator is seeded by ``derived_seed(seed of the command, stream, ...)``, so what one use draws never moves what
another draws. The numbers are part of every result under a seed: a new stream takes a new number, none is reused.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch

from ..shuffling import derived_seed


class TrainingStream(IntEnum):
    """What ``train`` and ``train-ssl`` draw, from ``--seed``."""

    WEIGHTS = 0  # the first weights of the model
    ORDER = 1  # which images make a batch
    MIXING = 2  # everything that a mixer or a model in training mode draws
    CROPPING = 3  # crops and flips, and the views of self-supervised training
    SAMPLES = 4  # the pictures of what a method does
    LABELLED = 5  # which labelled images join a batch of semi-supervised training
    AUGMENTING = 6  # torchvision's policies of --augment
    LINEAR = 7  # the layer of the linear evaluation: its weights and the order of its batches
    POLICY = 8  # the first weights of a policy that is learnt
    RISK = 11  # the images on which the augmented risk is measured


class EvaluationStream(IntEnum):
    """What ``evaluate`` draws, from its own ``--seed``."""

    OCCLUSION = 1  # where the hidden patches lie
    ATTACK = 2  # where the attack of PGD starts
    WEIGHTS = 3  # the start of the iteration for the Hessian's eigenvectors
    NOISE = 4  # noise on the weights
    DIRECTIONS = 5  # random directions of the loss surface


class SubsetStream(IntEnum):
    """What ``subsample`` draws, from its own ``--seed``, beside the library's `fastmix.uncertainty`."""

    RANDOM = 2  # a random selection


def seed_everything(*parts: int) -> None:
    """Seeds every generator that a model or a mixer may draw from.

    Called before each epoch, so that a checkpoint needs no state of theirs, and a resumed run draws what an
    uninterrupted one does.
    """
    seed = derived_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
