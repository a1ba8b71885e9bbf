"""The baselines as users import them, with the same calls as AstroCo for training, saving and embedding."""

from astroco_fast.pretrained import PretrainedEncoder
from astroco_fast.reference.astromer import ReferenceAstromer
from astroco_fast.reference.config import AstromerConfig


class Astromer(PretrainedEncoder, ReferenceAstromer):
    """Astromer, versions 1 and 2 (presets `astromer-v1`, `astromer-v2`, `astromer-v2-paper`), in plain PyTorch.

    `astroco_fast.reference.astromer` describes what they compute and their known faults.
    """

    config: AstromerConfig
    config_class = AstromerConfig
    paper = "a baseline; version 1 is arXiv 2205.01677, version 2 arXiv 2502.02717"

    def features(self) -> str:
        config = self.config
        return (
            f"a feed-forward of {config.feed_forward}, {'' if config.leak else 'no '}leak projections, "
            f"{config.mask_logit:+g} to hidden keys' logits, hidden magnitudes: {config.hidden_magnitude}"
        )
