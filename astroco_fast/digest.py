"""One hash that names a model, for caches and classifiers that fit no other model's vectors."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from astroco_fast.pretrained import PretrainedEncoder

# In the metadata of a table of vectors: the model's name, and its digest with the vectors' parts.
MODEL, DIGEST = "model", "model_sha256"


def model_facts(name: str, model: PretrainedEncoder, parts: Iterable[str]) -> dict[str, Any]:
    """What a table of vectors says of the model that made them: plain data, under `model` of its provenance.

    The name of a folder is made absolute.
    """
    absolute = str(Path(name).resolve()) if Path(name).is_dir() else name
    return {"name": absolute, "architecture": model.name, "sha256": model_digest(model, parts)}


def model_digest(model: PretrainedEncoder, parts: Iterable[str] = ()) -> str:
    """One hash of a model's configuration (its window included), its weights, and the parts of its vectors, if any."""
    facts = {"model": model.name, "parts": list(parts), **model.config.to_dict()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
