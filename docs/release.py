"""Put a pretrained model among those that ship with the package.

python docs/release.py CHECKPOINT FACTS.yaml NOTES.md

The weights are written in half precision to `astroco_fast/weights/NAME`, with checksums and a model card that ends with
the notes; the facts go into the index, which is ordered by the mean of macro-F1 over the numbers of labels. Whole
percents count, because smaller differences are within the spread; of equals the smaller model is first. FACTS.yaml has
the fields of `astroco_fast.released.Released` but `views`, `parameters` and `size`, which the model itself tells.
"""

import json
import statistics
import sys
from pathlib import Path

import yaml

import astroco_fast as af
from astroco_fast import checksums, released


def release(checkpoint: Path, facts: dict, notes: str) -> Path:
    """Write the model and the index; returns the model's folder."""
    model = af.load(checkpoint)
    folder = released.FOLDER / facts["name"]
    (folder / checksums.MANIFEST).unlink(missing_ok=True)
    model.save_pretrained(folder, notes=notes, half=True)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("PATH TO THIS FOLDER", facts["name"]))
    checksums.write_manifest(folder)
    index = released.FOLDER / released.INDEX
    others = [entry for entry in json.loads(index.read_text()) if entry["name"] != facts["name"]]
    parameters = sum(p.numel() for p in model.parameters())
    entries = [*others, {**facts, "views": model.views, "parameters": parameters}]
    entries.sort(key=lambda entry: (-round(statistics.mean(entry["macro_f1"].values())), entry["parameters"]))
    index.write_text(json.dumps(entries, indent=1) + "\n")
    return folder


if __name__ == "__main__":
    source, facts_file, notes_file = map(Path, sys.argv[1:])
    print(release(source, yaml.safe_load(facts_file.read_text()), notes_file.read_text()))
