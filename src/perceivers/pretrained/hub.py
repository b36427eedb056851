"""Loading and saving models by name: a folder, or a repository of the Hugging Face hub."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.resampler import Resampler
from perceivers.files.budgets import read_json
from perceivers.files.durable import write_text
from perceivers.files.durable_folder import DESCRIPTION, MANIFEST, check_folder, current, read_manifest, write_folder
from perceivers.files.locks import locked
from perceivers.files.messages import one_line
from perceivers.pretrained.model_folder import RESAMPLER, load_folder, made_of, savable, save_model
from perceivers.schema.schema_files import to_yaml

FILES = ["*.json", "*.safetensors", "README.md"]
"""Files that are downloaded from a hub repository; none of them is ever executed."""


LONGEST_NAME = 1000
"""Largest number of characters of the name of a model."""


def from_pretrained(name: str | Path, revision: str | None = None, offline: bool = False) -> Any:
    """Load the PerceiverIO or the Resampler of a folder, or of a hub repository "owner/name", in evaluation mode.

    The hashes of a repository are recorded when it is first used, and must not change afterwards.
    """
    if not isinstance(name, str | Path) or not str(name) or len(str(name)) > LONGEST_NAME:
        raise ValueError(f"name = {name!r:.99} must be a folder, or a hub repository owner/name")
    if Path(name).is_dir():
        with locked(Path(name), exclusive=False):
            folder = current(Path(name))
            if (folder / MANIFEST).exists():
                check_folder(folder)
            return load_folder(folder)
    folder = fetched(str(name), FILES, revision, offline)
    if not (folder / DESCRIPTION).exists():
        raise ValueError(f"{name} is no model of ours: perceivers convert {name} FOLDER --model NAME makes one of it")
    check_folder(folder)
    _check_known(f"{name}@{revision or 'main'}", folder / MANIFEST)
    return load_folder(folder)


def save_pretrained(model: nn.Module, folder: str | Path, about: str = "") -> None:
    """Write a model folder atomically. The model card ends with `about`.

    In an existing folder, the files of an older model are replaced and all others stay. ValueError for a run's
    checkpoint, and for a file that would be replaced but was not saved by this function. ValueError also for a
    model that could not be loaded again: adapted, pruned, quantised, or with weights that are not finite. A compiled
    model is saved without its wrapper.
    """
    target, saved = path_of_folder(folder), savable(model)

    def write(fresh: Path) -> None:
        save_model(saved, fresh)
        (fresh / "README.md").write_text(model_card(saved) + about, encoding="utf-8")

    write_folder(target, write)


def path_of_folder(folder: object) -> Path:
    """Return the path of a folder to write; ValueError for any other value."""
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise ValueError(f"folder = {folder!r:.99} must be the path of a folder")
    return Path(folder)


def push_to_hub(model: nn.Module, name: str, folder: str | Path, token: str | None = None) -> str:
    """Save to `folder` and upload only the saved files as repository "owner/name"; return its address.

    ValueError, before anything is saved, for a name that no repository can have, and as in `save_pretrained`.
    """
    from huggingface_hub import HfApi

    check_repository(name)
    save_pretrained(model, folder)
    api = HfApi(token=token)
    api.create_repo(name, exist_ok=True)
    with tempfile.TemporaryDirectory() as ours:
        for file in (*read_manifest(Path(folder)), MANIFEST):
            Path(ours, file).symlink_to(Path(folder, file).resolve())
        return str(api.upload_folder(repo_id=name, folder_path=ours))


def check_repository(name: object) -> None:
    """Raise a ValueError unless this is the name of a hub repository "owner/name"."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(name, str) or name.count("/") != 1:
        raise ValueError(f"name = {name!r:.99} must be a hub repository owner/name")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"name = {name!r:.99} must be a hub repository owner/name: {one_line(error)}") from None


def model_card(model: PerceiverIO | Resampler) -> str:
    """Return the model card, for readers and for the hub. The licence is for whoever publishes the model to state."""
    count = sum(parameter.numel() for parameter in model.parameters())
    is_resampler = isinstance(model, Resampler)
    kind, made = RESAMPLER if is_resampler else "Perceiver IO", made_of(model)
    parts = [made] if is_resampler else [model.schema, model.config]
    text = "\n".join(map(to_yaml, parts))
    return (
        "---\nlibrary_name: perceivers\n---\n\n"
        f"A {kind} of {count:,} parameters.\n\n"
        '```python\nfrom perceivers import from_pretrained\n\nmodel = from_pretrained("this folder")\n```\n\n'
        f"```yaml\n{text}```\n"
    )


def fetched(name: str, files: list[str], revision: str | None = None, offline: bool = False) -> Path:
    """Return the folder with these files of a hub repository "owner/name"; they are downloaded only once."""
    if name.count("/") != 1:
        raise ValueError(f"{name}: no such folder, and not a hub repository like owner/name")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f"{name}: no such folder; to fetch from the hub: pip install 'perceivers[hub]'") from None
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=offline, allow_patterns=files))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{name}: no such folder, and not to be had from the hub: {error}") from None


def _check_known(name: str, manifest: Path) -> None:
    try:
        path = Path(os.environ.get("PERCEIVERS_CACHE") or "~/.cache/perceivers").expanduser() / "known.json"
    except RuntimeError:
        raise ValueError(f"{name}: no home folder to note its hash in: set PERCEIVERS_CACHE to a folder") from None
    known: Mapping[str, Any] = read_json(path) if path.exists() else {}
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    if known.get(name, digest) != digest:
        raise ValueError(f"{name} has changed since it was first used: remove its line in {path} to accept it")
    if name not in known:
        write_text(path, json.dumps({**known, name: digest}, indent=2) + "\n")
