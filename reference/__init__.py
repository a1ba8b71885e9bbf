"""AstroCo in plain PyTorch, the truth that every kernel is checked against, and the baselines."""

from astroco_fast.reference.encoder import AstroCoOutput
from astroco_fast.reference.loss import ROLES, masked_loss
from astroco_fast.reference.model import ReferenceAstroCo

__all__ = ["ROLES", "AstroCoOutput", "ReferenceAstroCo", "masked_loss"]
