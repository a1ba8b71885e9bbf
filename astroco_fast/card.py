"""The model card that goes with saved weights."""

from astroco_fast.config import AstroCoConfig


def model_card(config: AstroCoConfig, parameters: int, notes: str = "") -> str:
    """Markdown that tells a stranger what the weights are and how to use them.

    Args:
        config: the model's hyperparameters.
        parameters: how many it has.
        notes: Markdown put in as it is, for instance data and figures of the training run.
    """
    parts = [
        name for name, on in (("convolution", config.convolution), ("gate", config.gate), ("mix", config.mix)) if on
    ]
    return f"""---
library_name: astroco_fast
tags: [astronomy, light-curves, variable-stars]
---
# AstroCo encoder

{parameters:,} parameters: {config.layers} blocks of width {config.width}, {config.heads} heads, windows of
{config.window} points, with {", ".join(parts) or "attention and a plain feed-forward only"}.
Architecture: AstroCo (arXiv 2509.24134), as implemented by astroco_fast.

```python
import astroco_fast as af

model = af.AstroCo.from_pretrained("PATH TO THIS FOLDER")
out = model(time, mag, err, mask)  # (B, T) each: days, magnitudes, uncertainties, True at real points
out.embedding                      # (B, {config.width})
```

{notes or "How these weights were trained was not recorded: they may be untrained."}
"""
