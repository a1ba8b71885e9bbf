"""No error without words: the package asserts nothing, and each error that it raises says something."""

import ast

import pytest

from tests.import_graph import ROOT, module_files

FILES = {name: path for name, path in module_files().items() if path.is_file()}


def wordless(source: str) -> list[int]:
    """The lines that assert, or raise an error of a class whose name ends in Error without a message."""
    found = []
    for node in ast.walk(ast.parse(source)):
        error = node.exc if isinstance(node, ast.Raise) else None
        call = error.func if isinstance(error, ast.Call) and not error.args and not error.keywords else error
        if isinstance(node, ast.Assert) or (isinstance(call, ast.Name) and call.id.endswith("Error")):
            found.append(node.lineno)
    return found


def test_no_error_is_without_words() -> None:
    assert len(FILES) > 100
    places = [f"{path.relative_to(ROOT)}:{line}" for path in FILES.values() for line in wordless(path.read_text())]
    assert places == []


@pytest.mark.parametrize("line", ["assert x", "assert x, 'why'", "raise ValueError", "raise UserError()"])
def test_a_wordless_error_is_found(line: str) -> None:
    assert wordless(f"def f(x):\n    {line}\n") == [2]


@pytest.mark.parametrize("line", ["raise ValueError('why')", "raise", "raise error", "raise StopIteration"])
def test_words_are_known(line: str) -> None:
    assert wordless(f"def f(x):\n    {line}\n") == []
