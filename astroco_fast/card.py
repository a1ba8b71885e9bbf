"""The model card that goes with saved weights."""

import json
from collections.abc import Mapping

from astroco_fast.reference.config import ModelConfig


def model_card(
    name: str,
    paper: str,
    config: ModelConfig,
    features: str,
    parameters: int,
    notes: str = "",
    metrics: Mapping[str, float] | None = None,
    dataset: str = "",
) -> str:
    """A model card in Markdown: the model, its training, and how to use the weights.

    Args:
        name: the architecture's name, which is also its class in `astroco_fast`.
        paper: the paper that describes it.
        config: the model's hyperparameters.
        features: the features that set the model apart from others of its architecture.
        parameters: the number of its parameters.
        notes: Markdown for the end of the card, for instance data and figures of the training run.
        metrics: figures by name, in a table and in the metadata that the Hugging Face Hub shows.
        dataset: what the figures were measured on.
    """
    return f"""---
library_name: astroco_fast
tags: [astronomy, light-curves, variable-stars]
{_index(name, metrics, dataset) if metrics else ""}---
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
{_table(metrics, dataset) if metrics else ""}"""


def _index(name: str, metrics: Mapping[str, float], dataset: str) -> str:
    """The metadata `model-index` of the Hub's cards; JSON is YAML, too."""
    found = [{"type": label, "name": label, "value": value} for label, value in metrics.items()]
    data = {"name": dataset or "unnamed", "type": dataset or "unnamed"}
    result = {"task": {"type": "feature-extraction"}, "dataset": data, "metrics": found}
    return f"model-index: {json.dumps([{'name': name, 'results': [result]}])}\n"


def _table(metrics: Mapping[str, float], dataset: str) -> str:
    rows = [f"| {label} | {value:g} |" for label, value in metrics.items()]
    return "\n".join(["", f"| {f'measured on {dataset}' if dataset else 'figure'} | |", "|---|---|", *rows, ""])
