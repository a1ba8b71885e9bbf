"""Dropout whose mask kernels can draw again, from a counter-based generator."""

from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout` with a salt.

    Kernels draw the mask from a counter-based generator and draw it again in backward: a function of the batch's seed
    (`Layout.seed`), the salt, the row and the channel. The reference draws from torch's generator and ignores the salt.

    Attributes:
        salt: sets this module's draws apart from those of the model's other dropouts, under one seed a batch.
    """

    salt: int = 0


def number_salts(model: nn.Module) -> None:
    """Give each `Dropout` of a model a salt of its own: its place among the model's modules."""
    for place, module in enumerate(model.modules()):
        if isinstance(module, Dropout):
            module.salt = place
