"""Hooks of the documentation site: the pages that are made from the code when the site is built.

- `commands.md`: each command's own `--help`.
- `api.md` and `api/*.md`: directives for mkdocstrings, a page for the public names and a page for each package.
- `tutorials/*.md`: the notebooks of these names as `make notebooks` stored them, with their figures.
- `contributing.md` and `changelog.md`: the files of these names in the project's root.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

import astroco_fast
from astroco_fast.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "build" / "package" / "astroco_fast"  # as setuptools builds it; `make docs` does so first
PANDAS = re.compile(r"<style scoped>.*?</style>\s*<table[^>]*>", re.DOTALL)
COLUMNS = "84"  # width of the help texts, as a page shows them


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site's files."""
    pages: dict[str, str | bytes] = {
        "commands.md": commands_page(),
        "api.md": names_page(),
        "contributing.md": root_page("CONTRIBUTING.md"),
        "changelog.md": root_page("CHANGELOG.md"),
        **dict(package_pages()),
    }
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        pages |= notebook_page(file.src_uri, Path(str(file.abs_src_path)))
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def commands_page() -> str:
    """Every command's `--help`, as the command prints it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(help_text, COMMANDS))
    sections = [
        f"## astroco {name}\n\n```text\n{text.strip()}\n```\n" for name, text in zip(COMMANDS, texts, strict=True)
    ]
    intro = (
        "`astroco NAME` and `python -m astroco_fast.NAME` are the same. Each text below is the command's own `--help`."
    )
    return "\n".join(["# Commands\n", f"{intro}\n", *sections])


def help_text(name: str) -> str:
    """The output of `astroco NAME --help`."""
    command = [sys.executable, "-m", f"astroco_fast.{name}", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": COLUMNS})
    if result.returncode:
        raise PluginError(f"astroco {name} --help failed:\n{result.stderr}")
    return "".join(letter for letter in result.stdout if letter.isprintable() or letter == "\n")


def names_page() -> str:
    """The names that `import astroco_fast` offers."""
    names = sorted(astroco_fast._LAZY.items(), key=lambda item: item[0].lower())
    directives = [
        f'::: {module}.{name}\n    options: {{heading: "astroco_fast.{name}", skip_local_inventory: true}}\n'
        for name, module in names
    ]
    intro = "`import astroco_fast as af` offers the names on this page. The other pages hold what they are made of."
    return "\n".join(["# Python\n", f"{intro}\n", *directives])


def package_pages() -> Iterator[tuple[str, str]]:
    """A page for each package with all of its modules."""
    if not PACKAGE.is_dir():
        raise PluginError(f"{PACKAGE} is missing; build the site with `make docs`")
    for init in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(init.parent.relative_to(PACKAGE.parent).parts)
        short = package.removeprefix("astroco_fast.")
        modules = [package, *(f"{package}.{path.stem}" for path in sorted(init.parent.glob("[!_]*.py")))]
        directives = [f"::: {module}\n    options: {{show_submodules: false}}\n" for module in modules]
        yield f"api/{short}.md", "\n".join([f"# {package}\n", *directives])


def notebook_page(uri: str, path: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its figures, by their places in the site."""
    name, folder = path.stem, uri.rpartition("/")[0]
    text, made = MarkdownExporter().from_filename(path, {"unique_key": name, "output_files_dir": name})
    title, rest = text.strip().split("\n", 1)
    get = f'<a href="../{path.name}" download>Download this notebook</a> ({path.name})'
    body = f"{title}\n\n{get}\n{rest}".replace("![png](", "![figure](")
    body = PANDAS.sub("<table>", body)  # as the theme draws tables
    figures = {f"{folder}/{figure}": content for figure, content in made["outputs"].items()}
    return {f"{folder}/{name}.md": body, **figures}


def root_page(name: str) -> str:
    """A Markdown file of the project's root, its links as links of the site, whose first page stands for the README."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](README.md", "](index.md")
    return re.sub(r"\]\(docs/", "](", text)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links to the files that pages are made of into links to these pages."""
    markdown = re.sub(r"\]\(([\w/]+)\.ipynb\)", r"](\1.md)", markdown)
    return re.sub(r"\]\((?:\.\./)?(CHANGELOG|CONTRIBUTING)\.md", lambda found: f"]({found[1].lower()}.md", markdown)
