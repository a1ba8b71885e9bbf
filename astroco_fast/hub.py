"""The Hugging Face Hub: models are read from it and published on it, and only where its name, `hub:`, is said.

A repository is named `hub:NAME/REPOSITORY`, and a branch, tag or commit of it `hub:NAME/REPOSITORY@REVISION`. Without
`hub:` a name is a folder or a released model: a mistyped path of two parts looks like a repository, and must not be
sent to the network.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astroco_fast.errors import MissingExtraError, UserError

HUB = "hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse(source: str) -> tuple[str, str | None]:
    """The repository and the revision (None: the newest) of `hub:NAME/REPOSITORY` or `hub:NAME/REPOSITORY@REVISION`.

    Raises:
        UserError: it is no such name.
    """
    name, _, revision = source.removeprefix(HUB).partition("@")
    if not _REPOSITORY.fullmatch(name) or (revision == "") != ("@" not in source):
        raise UserError(
            f"{source}: a repository of the Hub is named {HUB}NAME/REPOSITORY or {HUB}NAME/REPOSITORY@REVISION"
        )
    return name, revision or None


def download(source: str, files: Sequence[str]) -> Path:
    """The folder of a snapshot of a repository's files.

    Args:
        source: the repository, as for `parse`.
        files: the names of the files.

    Raises:
        UserError: there is no such repository or revision, or the Hub does not answer.
        MissingExtraError: huggingface-hub is not installed.
    """
    name, revision = parse(source)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface-hub", "hub", f"{source}: reading it from the Hub") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the Hub's client raises many kinds; each means the same to the user
        raise UserError(f"{source}: the Hub did not give it: {_reason(error)}") from error


def upload(folder: Path, repository: str, files: Sequence[str], message: str, private: bool, token: str | None) -> str:
    """Publish files of a folder as one commit.

    Args:
        folder: the folder.
        repository: where to; it is created if need be, and a revision of it as a branch.
        files: the names of the files.
        message: the commit's.
        private: whether a new repository is to be private.
        token: the Hub's; None: the one that `hf auth login` saved.

    Returns:
        The commit's address.

    Raises:
        UserError: it is no name of a repository, or the Hub refuses.
        MissingExtraError: huggingface-hub is not installed.
    """
    name, revision = parse(repository)
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtraError("huggingface-hub", "hub", f"{repository}: publishing on the Hub") from None
    api: Any = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        made = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(files), revision=revision, commit_message=message
        )
    except Exception as error:
        raise UserError(f"{repository}: the Hub did not take it: {_reason(error)}") from error
    return str(getattr(made, "commit_url", made))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
