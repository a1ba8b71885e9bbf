"""The report of a finished fine-tuning run: its best model on test stars, which took no part in the run."""

import json
from pathlib import Path

import numpy as np
import torch

from astroco_fast import plots
from astroco_fast.data.training import TrainingData, upload
from astroco_fast.errors import MissingExtraError
from astroco_fast.files import whole_file, write_text
from astroco_fast.finetune.classes import Classes
from astroco_fast.finetune.model import load_finetuned
from astroco_fast.finetune.scores import add_scores, figures
from astroco_fast.pretrain.checkpoint import BEST
from astroco_fast.pretrain.run_folder import CHECKPOINTS, CONFUSION, REPORT, TESTED
from astroco_fast.probe.figures import confusion_figure
from astroco_fast.probe.metrics import confusion_matrix, f1_scores
from astroco_fast.text import cell

_BATCH = 64


def write_report(out: Path, data: TrainingData, classes: Classes, draw: bool) -> list[Path]:
    """Test the best model, and write report.md, test.json and, if matplotlib is installed, confusion.png.

    Returns:
        Their paths.
    """
    model = load_finetuned((out / CHECKPOINTS / BEST).resolve())
    table = np.zeros((data.store.n_curves, len(classes.names) + 1))
    with torch.inference_mode():
        for first in range(0, len(data.test), _BATCH):
            batch = data.evaluation_batch(data.test[first : first + _BATCH])
            positional, keywords = upload(batch, torch.device("cpu")).inputs()
            logits = model(*positional, **keywords).logits
            add_scores(table, data, batch.index, batch.lengths, logits.double().numpy())
    seen = np.flatnonzero(table[:, -1])
    confusion = confusion_matrix(classes.of_curve[seen], table[seen, :-1].argmax(1), len(classes.names))
    found = figures(table, classes)
    results = {
        **found,
        "classes": list(classes.names),
        "f1": f1_scores(confusion).tolist(),
        "confusion": confusion.tolist(),
        "simulated": data.store.simulated,
    }
    write_text(out / TESTED, json.dumps(results, indent=1) + "\n")
    paths = [out / REPORT, out / TESTED]
    simulated = ", SIMULATED" * data.store.simulated
    if draw:
        title = f"{found['curves']:,} test light curves{simulated}\nmacro-F1 {found['macro_f1']:.3f}"
        try:
            with plots.drawing():
                figure = confusion_figure(confusion, classes.names, title)
                with whole_file(out / CONFUSION) as partial:
                    figure.savefig(partial, format="png")
            paths.append(out / CONFUSION)
        except MissingExtraError:
            draw = False
    rows = [
        f"| {cell(name)} | {confusion[i].sum():,} | {score:.3f} |"
        for i, (name, score) in enumerate(zip(classes.names, f1_scores(confusion), strict=True))
    ]
    text = [
        "# Fine-tuned model",
        "",
        f"The best model of the run, on {found['curves']:,}{simulated.replace(',', '')} test light curves, whose stars "
        "took no part in the run (a tenth of each class). One draw, and no spread: compare runs of "
        "different seeds before believing a small difference.",
        "",
        f"Macro-F1 {found['macro_f1']:.3f}, accuracy {found['accuracy']:.3f}, balanced cross-entropy "
        f"{found['loss']:.3f}.",
        "",
        "| class | test light curves | F1 |",
        "|---|---|---|",
        *rows,
        *(["", f"![confusion matrix]({CONFUSION})"] if draw else []),
        "",
    ]
    write_text(out / REPORT, "\n".join(text))
    return paths
