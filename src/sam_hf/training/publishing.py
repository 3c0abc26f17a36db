"""A trained model on the Hub."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor

from .checkpoints import MANIFEST


def create_repository(name: str) -> str:
    """Make sure that there is a repository, and return its full name."""
    return HfApi().create_repo(name, exist_ok=True).repo_id


def push(folder: Path, repo_id: str) -> None:
    """Upload a copy of the folder that carries the code, so that it loads where `sam_hf` is not installed."""
    with TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (Path(copy) / MANIFEST).unlink(missing_ok=True)
        for part in (AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)):
            part.save_pretrained(copy, include_code=True)
        print(f"pushed to {HfApi().upload_folder(repo_id=repo_id, folder_path=copy)}")


__all__ = ["create_repository", "push"]
