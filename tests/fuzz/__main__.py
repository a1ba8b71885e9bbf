"""`python -m tests.fuzz --inputs N --seed S [--kind K]`: a campaign, which is added to the record.

`python -m tests.fuzz --write docs/reliability.md` writes the record's tables to that page.
"""

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import campaign, page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=0, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only this kind (see tests/fuzz/kinds.py)")
    parser.add_argument(
        "--folder", type=Path, help="folder for inputs that fail; a campaign that stopped goes on there"
    )
    parser.add_argument("--record", type=Path, default=page.RECORD, help="JSON file to add the numbers to")
    parser.add_argument("--write", type=Path, help="page to write the record's tables to")
    options = parser.parse_args()
    if options.inputs:
        if find_spec("atheris") is None:
            parser.error("atheris is not installed: pip install -e '.[fuzz]'")
        fuzz(options)
    if options.write is not None:
        page.write(options.write, options.record)
    return 0


def fuzz(options: argparse.Namespace) -> None:
    """Run a campaign; the record has each part as soon as it is done."""
    kinds = campaign.instrumented_kinds()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="astroco-fuzz-"))
    parts = list(campaign.chosen(kinds, options.kind))
    shares = sum(kinds[name].share for name, _ in parts)
    before, facts = page.read(options.record), {**campaign.facts(), "seed": options.seed, "parts": []}
    for number, (name, sort) in enumerate(parts):
        inputs = max(round(options.inputs * kinds[name].share / shares), 1)
        place = folder / f"{name}, {sort}".replace("/", "-")
        part = campaign.run_kind(kinds[name], sort, inputs, options.seed + 1000 * number, place)
        facts["parts"].append(part)
        page.save(options.record, [*before, facts])
        print(part, flush=True)
    print(f"inputs that failed: {folder}")


if __name__ == "__main__":
    sys.exit(main())
