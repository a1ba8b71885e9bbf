"""Masks as whole arrays, for tests."""

import numpy as np

from astroco_fast.data.masking import draw_roles


def draw_masks(lengths, window_index, width, seed, epoch):
    """Roles (B, T), and for each point the position whose magnitude it shows (B, T): its own, unless it is random."""
    draw = draw_roles(lengths, window_index, width, seed, epoch)
    source = np.tile(np.arange(width), (len(draw.role), 1))
    source[draw.row, draw.position] = draw.source
    return draw.role, source
