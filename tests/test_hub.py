"""The Hugging Face Hub, with a stand-in for its client: what is asked of it, and what never is."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import astroco_fast as af
from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.hub import parse


class FakeApi:
    """Keeps what it is given, as `huggingface_hub.HfApi` would take it."""

    calls: list[tuple[str, dict[str, Any]]]
    files: dict[str, bytes]

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}))

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, "branch": branch}))

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], revision: str | None, commit_message: str
    ) -> Any:
        self.calls.append(("upload_folder", {"repo_id": repo_id, "revision": revision, "message": commit_message}))
        self.files.update({name: (Path(folder_path) / name).read_bytes() for name in allow_patterns})
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeApi]:
    class Api(FakeApi):
        calls, files = [], {}

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        Api.calls.append(("download", {"repo_id": name, "revision": revision}))
        for file in allow_patterns:
            (tmp_path / file).write_bytes(Api.files[file])
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, snapshot_download=download))
    return Api


@pytest.fixture(scope="module")
def model() -> af.AstroCo:
    torch.manual_seed(0)
    return af.AstroCo.from_preset("tiny", width=16, heads=2, layers=1).eval()


def test_a_published_model_is_read_back_with_its_revision(hub, model):
    address = model.push_to_hub("me/encoder@v1", notes="Made of noise.", private=True, token="secret")
    assert address == "https://hub/me/encoder/commit/1"
    assert hub.calls == [
        ("token", {"token": "secret"}),
        ("create_repo", {"repo_id": "me/encoder", "private": True, "exist_ok": True}),
        ("create_branch", {"repo_id": "me/encoder", "branch": "v1"}),
        ("upload_folder", {"repo_id": "me/encoder", "revision": "v1", "message": "Publish a model of astroco_fast"}),
    ]
    again = af.load("hub:me/encoder@v1")
    assert hub.calls[-1] == ("download", {"repo_id": "me/encoder", "revision": "v1"})
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_the_card_has_the_figures_in_its_text_and_its_metadata(hub, model):
    model.push_to_hub("me/encoder", notes="Made of noise.", metrics={"macro-F1": 0.847}, dataset="Catalina")
    assert not [call for call, _ in hub.calls if call == "create_branch"]
    card = hub.files["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    (entry,) = yaml.safe_load(head)["model-index"]
    (result,) = entry["results"]
    assert result["metrics"] == [{"type": "macro-F1", "name": "macro-F1", "value": 0.847}]
    assert result["dataset"]["name"] == "Catalina"
    assert "| macro-F1 | 0.847 |" in text
    assert "Made of noise." in text
    assert set(json.loads(hub.files["manifest.json"])["files"]) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["encoder", "a/b/c", "me/", "/encoder", "me/encoder@", "../x", "me/en coder", ""])
def test_what_is_no_repository_is_refused_before_anything_is_asked(name, hub, model):
    with pytest.raises(UserError, match="a repository of the Hub is named hub:NAME/REPOSITORY"):
        model.push_to_hub(name)
    with pytest.raises(UserError):
        af.load(f"hub:{name}")
    assert hub.calls == []


def test_names_are_taken_apart():
    assert parse("hub:me/encoder") == parse("me/encoder") == ("me/encoder", None)
    assert parse("hub:me/encoder@v1.0") == ("me/encoder", "v1.0")


def test_what_the_hub_refuses_is_one_line(hub, model, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden\nlong explanation")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(UserError, match=r"me/encoder: the Hub did not take it: 403 Forbidden$"):
        model.push_to_hub("me/encoder")


def test_a_missing_client_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for ask in (lambda: af.load("hub:me/encoder"), lambda: model.push_to_hub("me/encoder")):
        with pytest.raises(MissingExtraError, match=r"needs huggingface-hub: pip install 'astroco_fast\[hub\]'"):
            ask()
