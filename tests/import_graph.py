"""The graph of the package's imports, read from the sources. Run as a program, it draws the picture in docs/:

    python -m tests.import_graph docs/imports.png

Imports inside functions count too, because a late import from a higher layer makes a circle as much as an early one.
Imports for type checking only (`if TYPE_CHECKING`) do not count.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"astroco_fast": "astroco_fast", "kernels": "astroco_fast.kernels", "reference": "astroco_fast.reference"}

Graph = dict[str, set[str]]


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """The file of every module of the package, by the module's dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def import_graph(root: Path = ROOT) -> Graph:
    """The package's modules that each module imports, other than itself.

    A package that only forwards names lazily (`__getattr__`) imports nothing.
    """
    files = module_files(root)
    return {name: {target for target in _imports(name, path, files) if target != name} for name, path in files.items()}


def cycles(graph: Graph) -> list[list[str]]:
    """The sets of modules that import one another in a circle (strongly connected components), each sorted."""
    order: list[str] = []
    seen: set[str] = set()
    for start in graph:
        _visit(start, graph, seen, order)
    reverse: Graph = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            reverse[target].add(name)
    seen, found = set(), []
    for start in reversed(order):
        component: list[str] = []
        _visit(start, reverse, seen, component)
        if len(component) > 1:
            found.append(sorted(component))
    return found


def _visit(start: str, graph: Graph, seen: set[str], order: list[str]) -> None:
    """Search depth first from `start`; append each module to `order` after all modules that it leads to."""
    if start in seen:
        return
    seen.add(start)
    stack = [(start, iter(sorted(graph[start])))]
    while stack:
        name, targets = stack[-1]
        target = next((t for t in targets if t not in seen), None)
        if target is None:
            order.append(name)
            stack.pop()
        else:
            seen.add(target)
            stack.append((target, iter(sorted(graph[target]))))


def _imports(name: str, path: Path, files: dict[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (module for alias in node.names if (module := _known(alias.name, files)))
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                if module := _known(f"{base}.{alias.name}", files) or _known(base, files):
                    yield module


def _known(name: str, files: dict[str, Path]) -> str | None:
    """The module of this name; None if there is no such module, as for a name that the package's root loads lazily."""
    return name if name in files and name != "astroco_fast" else None


# The nodes of the picture, by the beginning of the modules' names; the first that fits a module has it.
GROUPS = {
    "errors, files": ("errors", "files", "folders", "private", "text", "checksums", "machine"),
    "reference": ("reference", "layout", "config"),
    "kernels.cpu": ("kernels.cpu",),
    "kernels.triton": ("kernels.triton",),
    "kernels.audit": ("kernels.audit",),
    "kernels": ("kernels",),
    "self-check": ("selfcheck", "comparison", "verdicts", "configuration"),
    "ops": ("ops", "warming", "capture", "buckets"),
    "models": (
        *("model", "baselines", "presets", "registry", "released", "pretrained", "card", "digest", "flops"),
        *("astromer_weights", "hub"),
    ),
    "data": ("data",),
    "embedding": ("embedding", "embedding_choice", "embedding_curves", "encoding"),
    "settings": ("commands", "settings"),
    "simulate": ("simulate",),
    "plots": ("plots",),
    "pretrain": ("pretrain",),
    "probe": ("probe",),
    "reproduce": ("reproduce",),
    "finetune": ("finetune",),
    "commands": ("",),
}


def grouped(graph: Graph) -> dict[tuple[str, str], int]:
    """The number of imports from each group to each other group."""
    counts: dict[tuple[str, str], int] = {}
    for name, targets in graph.items():
        for target in targets:
            edge = (_group(name), _group(target))
            if edge[0] != edge[1]:
                counts[edge] = counts.get(edge, 0) + 1
    return counts


def _group(module: str) -> str:
    rest = module.removeprefix("astroco_fast.")
    return next(
        group
        for group, beginnings in GROUPS.items()
        if any(b in ("", rest) or rest.startswith(f"{b}.") for b in beginnings)
    )


def _leads(a: str, b: str, edges: set[tuple[str, str]]) -> bool:
    """Whether some path of edges leads from a to b."""
    reached, front = {a}, {a}
    while front:
        front = {y for x, y in edges if x in front} - reached
        reached |= front
    return b in reached


def draw(graph: Graph, out: Path) -> None:
    """Draw the groups of modules, each below those that import it, by the longest paths; arrows back are red."""
    from matplotlib.figure import Figure

    counts = grouped(graph)
    nodes = [group for group in GROUPS if any(group in edge for edge in counts)]
    back = {(a, b) for (a, b), count in counts.items() if (b, a) in counts and (count, b, a) < (counts[b, a], a, b)}
    level: dict[str, int] = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for a, b in counts:
            if (a, b) not in back:
                level[a] = max(level[a], min(level[b] + 1, len(nodes)))
    rows: dict[int, list[str]] = {}
    for node in nodes:
        rows.setdefault(level[node], []).append(node)
    places = {
        node: ((i + 1) / (len(row) + 1) + 0.06 * (-1) ** y, y) for y, row in rows.items() for i, node in enumerate(row)
    }
    figure = Figure(figsize=(9, 1 + 0.95 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1.05), ylim=(-0.5, max(rows) + 0.5))
    axes.axis("off")
    for (a, b), count in counts.items():
        wrong = (a, b) in back
        if not wrong and _leads(a, b, counts.keys() - back - {(a, b)}):
            continue  # the picture shows the longer path
        arrow = {"arrowstyle": "-|>", "shrinkA": 14, "shrinkB": 14, "lw": 0.5 + 0.25 * count**0.5}
        arrow |= {"color": "tab:red" if wrong else "0.55", "connectionstyle": f"arc3,rad={0.25 if wrong else 0.06}"}
        axes.annotate("", places[b], places[a], arrowprops=arrow)
    for node, (x, y) in places.items():
        box = {"boxstyle": "round", "fc": "white", "ec": "0.3"}
        axes.text(x, y, node, ha="center", va="center", fontsize=10, bbox=box)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(import_graph(Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT), Path(sys.argv[1]))
