"""The model card that goes with saved weights."""

from astroco_fast.reference.config import ModelConfig


def model_card(name: str, paper: str, config: ModelConfig, features: str, parameters: int, notes: str = "") -> str:
    """A model card in Markdown: the model, its training, and how to use the weights.

    Args:
        name: the architecture's name, which is also its class in `astroco_fast`.
        paper: the paper that describes it.
        config: the model's hyperparameters.
        features: the features that set the model apart from others of its architecture.
        parameters: the number of its parameters.
        notes: Markdown for the end of the card, for instance data and figures of the training run.
    """
    return f"""---
library_name: astroco_fast
tags: [astronomy, light-curves, variable-stars]
---
# {name} encoder

{parameters:,} parameters: {config.layers} blocks of width {config.width}, {config.heads} heads, windows of
{config.window} points, with {features}.
Architecture: {name} ({paper}), as implemented by astroco_fast.

```python
import astroco_fast as af

model = af.{name}.from_pretrained("PATH TO THIS FOLDER")
out = model(time, mag, err, mask)  # (B, T) each: days, magnitudes, uncertainties, True at real points
out.embedding  # (B, {config.width})
```

{notes or "How these weights were trained was not recorded: they may be untrained."}
"""
