"""Data run no code and lead to no file outside their folder; what the package depends on is listed with its licence."""

import ast
import json
import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from astroco_fast import presets, registry, settings
from astroco_fast.errors import UserError
from astroco_fast.folders import MARK, result_folder
from astroco_fast.pretrain.checkpoint import BEST, CheckpointFolder
from astroco_fast.pretrained import local_folder

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("astroco_fast", "kernels", "reference") for path in (ROOT / folder).rglob("*.py")]
# Modules and functions that run code which data hold.
MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
CALLS = {
    *("eval", "exec", "torch.load", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle", "read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "os.system", "pa.deserialize"),
}


@pytest.mark.skipif(not SOURCES, reason="not in a checkout")
def test_nothing_is_unpickled_or_evaluated() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names} & MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or ""} & MODULES
            elif isinstance(node, ast.Call):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                is_safe = words.get("Loader") in ("yaml.BaseLoader", "yaml.SafeLoader")
                names = set() if is_safe else {ast.unparse(node.func)} & CALLS
                names |= {"allow_pickle"} & words.keys()
            found += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in names]
    assert len(SOURCES) > 100
    assert found == []


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [touch ran]", "!!python/name:os.system", "!!python/object/new:os.stat [.]"]
)
def test_yaml_runs_no_code(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(f"seed: {tag}")
    with pytest.raises(UserError, match="not YAML"):
        settings.read_yaml("settings.yaml", "")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../../victim", "/victim", "a/../../victim", "..", "", "a/b"])
@pytest.mark.parametrize("key", ["names", "results"])
def test_a_mark_leads_to_no_file_outside_its_folder(key: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "out"
    folder.mkdir(parents=True)
    (folder / MARK).write_text(json.dumps({"command": "probe", "names": [], "results": [], key: [name]}))
    with (
        pytest.raises(UserError, match="damaged, so it does not say whose results"),
        result_folder(folder, "probe", "busy", lambda path: ([], [])),
    ):
        pass


def test_a_state_leads_to_no_folder_outside_its_run(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    checkpoints = CheckpointFolder(tmp_path / "run", keep=1)
    (checkpoints.folder / "step-00000001").mkdir(parents=True)
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), ".", ".."):
        checkpoints.reset_best(name)
        assert not (checkpoints.folder / BEST).is_symlink()
    checkpoints.reset_best("step-00000001")
    assert checkpoints.target(BEST) == "step-00000001"


@pytest.mark.parametrize("name", ["../S", "S/../S", "/etc/passwd", "S\0", "", "weights/../S"])
def test_presets_are_names_and_no_paths(name: str) -> None:
    for build in (registry.build, presets.preset):
        with pytest.raises(UserError, match="no preset"):
            build(name)


@pytest.mark.parametrize(
    "source", ["../../nowhere", "/etc/nowhere", "../weights", "~/nowhere", "a/../b", "./x/y", "x/../../y"]
)
def test_paths_that_are_not_there_are_not_asked_of_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would raise, and another error be told
    with pytest.raises(UserError, match="no such folder, and no released model"):
        local_folder(source)


def test_every_dependency_is_listed_with_its_licence() -> None:
    needed = {re.split(r"[^\w.-]", text)[0] for text in requires("astroco_fast") or []} - {"astroco_fast"}
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert {"torch", "build"} <= needed
    assert needed <= {*re.findall(r"([\w-]+) \(", page)}
