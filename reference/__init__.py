"""AstroCo in plain PyTorch: the truth that every kernel is checked against."""

from astroco_fast.reference.loss import ROLES, masked_loss
from astroco_fast.reference.model import AstroCoOutput, ReferenceAstroCo

__all__ = ["ROLES", "AstroCoOutput", "ReferenceAstroCo", "masked_loss"]
