"""Names from files are shown as they are, but do not steer the terminal, Markdown or a figure."""

import numpy as np

from astroco_fast.data.columns import listed
from astroco_fast.data.convert import ConversionReport
from astroco_fast.data.recovery import markdown
from astroco_fast.probe.figures import confusion_figure
from astroco_fast.text import cell, figure_text, printable, rows

NAME = "\x1b]0;x\x07V|\n\x9b2J\u202e"
SHOWN = "?]0;x?V|??2J?"


def test_control_characters_are_shown_as_question_marks() -> None:
    assert printable(NAME) == SHOWN
    assert printable("Cepheid \u03b4 RRab-C/2 \u661f") == "Cepheid \u03b4 RRab-C/2 \u661f"
    assert cell(NAME) == SHOWN.replace("|", "\\|")
    assert list(rows([[NAME, "1"]])) == [f"  {SHOWN}  1"]
    assert listed([NAME]) == SHOWN
    assert list(markdown([["class"], [NAME]]))[-1] == f"| {cell(NAME)} |"


def test_report_of_a_conversion() -> None:
    counts = {"curves": 1, "points": 1}
    report = str(ConversionReport(NAME, "out", counts, counts, {}, {NAME: 1}, notes=[NAME]))
    assert report.count("\n") == 4
    assert report.count(SHOWN) == 3


def test_a_figure_of_classes_with_formula_signs() -> None:
    assert figure_text("a$b\n") == "a\\$b?"
    figure = confusion_figure(np.eye(2), ["$\\frac", NAME], "title")
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["\\$\\frac", SHOWN]
