"""The matrix of versions: the lock without the versions that a row names, and the page's rows."""

from tests.matrix import ROOT, Row, _name, _pins, cells, written


def test_the_lock_is_read_requirement_by_requirement() -> None:
    pins = _pins((ROOT / "requirements-dev.lock").read_text())
    names = [_name(pin) for pin in pins]
    assert {"numpy", "triton", "pytest"} <= set(names)
    assert all("--hash=sha256:" in pin for pin in pins)


def test_a_row_replaces_the_one_of_its_versions() -> None:
    page = "# Versions\n\n| a |\n|---|\n\nMore.\n"
    first, second = Row("3.10", "2.11.0", "3.6.0"), Row("3.13", "2.15.0", "3.9.0", ("numpy<3",))
    page = written(page, cells(first, {"passed": 1, "failed": 2, "skipped": 3}, "today"))
    page = written(page, cells(second, {}, "today"))
    page = written(page, cells(first, {"passed": 4, "failed": 0, "skipped": 3}, "tomorrow"))
    assert page.splitlines()[4:] == [
        "| 3.10 | 2.11.0 | 3.6.0 |  | 4 | 0 | 3 | tomorrow |",
        "| 3.13 | 2.15.0 | 3.9.0 | numpy<3 | none ran |  |  | today |",
        "",
        "More.",
    ]
