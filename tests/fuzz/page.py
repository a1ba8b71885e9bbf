"""The record of campaigns, and its tables in docs/reliability.md."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import BYTES, CONTENT, OUTCOMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, RECORD = DOCS / "reliability.md", DOCS / "reliability" / "fuzz.json"
_BEGIN, _END = "<!-- fuzzing: written by `make reliability` -->\n", "<!-- end of fuzzing -->"


def read(record: Path) -> list[dict[str, Any]]:
    """The campaigns of a record: date, commit, seed, versions, and `parts`, an entry for each kind and sort."""
    campaigns: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    return campaigns


def save(record: Path, campaigns: Sequence[dict[str, Any]]) -> None:
    """Write a record, with a line for each part."""
    texts = []
    for campaign in campaigns:
        facts = {key: value for key, value in campaign.items() if key != "parts"}
        parts = ",\n  ".join(json.dumps(part) for part in campaign["parts"])
        texts.append(f'{json.dumps(facts)[:-1]}, "parts": [\n  {parts}\n]}}')
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("[\n" + ",\n".join(texts) + "\n]\n", encoding="utf-8")


def write(page: Path, record: Path) -> None:
    """Write the tables of a record between the page's two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise SystemExit(f"{page}: has not the marks {_BEGIN.strip()} and {_END}")
    page.write_text(before + _BEGIN + "\n".join(tables(read(record))) + "\n" + _END + after, encoding="utf-8")


def tables(campaigns: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of the page's text and tables."""
    parts = [part for campaign in campaigns for part in campaign["parts"]]
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        sums[part["kind"]].update({part["sort"]: part["inputs"], **{name: part[name] for name in OUTCOMES}})
    total = sum(sums.values(), Counter())
    dates = sorted({campaign["date"] for campaign in campaigns})
    commits = list(dict.fromkeys(campaign["commit"] for campaign in campaigns))
    seeds = ", ".join(str(campaign["seed"]) for campaign in campaigns)
    yield ""
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    yield (
        f"{total[BYTES] + total[CONTENT]:,} inputs in {len(campaigns)} campaigns, {days}: {total['valid']:,} gave a "
        f"valid result, {total['refused']:,} were refused in one line, {total['failed']:,} failed."
    )
    yield ""
    yield "| kind of file | bytes damaged | odd content | valid | refused | failed |"
    yield "|---|---:|---:|---:|---:|---:|"
    for kind, counts in [*sums.items(), ("**all**", total)]:
        yield f"| {kind} | " + " | ".join(f"{counts[name]:,}" for name in (BYTES, CONTENT, *OUTCOMES)) + " |"
    yield ""
    yield from _failures(campaigns)
    versions = campaigns[-1]["versions"]
    yield f"Commits {', '.join(commits)}; seeds {seeds}; {', '.join(f'{name} {v}' for name, v in versions.items())}."
    yield ""


def _failures(campaigns: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A table of the sorts of failures, and of the last campaign that had each."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for number, campaign in enumerate(campaigns, 1):
        for part in campaign["parts"]:
            for sort, times in part["failures"].items():
                found[sort.replace("|", "/"), part["kind"]].update(times=times)
                found[sort.replace("|", "/"), part["kind"]]["last"] = number
    if found:
        yield "| failure | kind of file | times | last seen in campaign |"
        yield "|---|---|---:|---:|"
        for (sort, kind), counts in sorted(found.items()):
            yield f"| `{sort}` | {kind} | {counts['times']:,} | {counts['last']} of {len(campaigns)} |"
        yield ""
