"""Folders that the workers of one deployment share on a machine, and nobody else."""

from __future__ import annotations

import hashlib
import os
import tempfile
from typing import Any

__all__ = ["app_folder", "app_digest", "private_folder"]


def private_folder(path: str) -> str:
    """Make the folder at *path* where it is not there; return *path*.

    :raises RuntimeError: it belongs to somebody else, or others may look into it.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise RuntimeError(
                f"{path} belongs to somebody else or is open to others; remove it, chmod it to 0700, or"
                " choose another with LLMSTREAM_SHARED_DIR"
            ) from None
    return path


def app_digest(app: Any) -> str:
    """Return a name for *app* that is the same in all its workers."""
    return hashlib.sha256(f"{app.import_name}\0{app.root_path}".encode()).hexdigest()[:16]


def app_folder(app: Any, chosen: str, purpose: str) -> str:
    """Return a private folder that all workers of *app* on this machine find.

    :param app: the Flask app.
    :param chosen: the setting ``shared_dir``; empty for a place in the temporary directory.
    :param purpose: name of the folder in it.
    :raises RuntimeError: as :func:`private_folder`.
    """
    root = chosen or os.path.join(
        private_folder(os.path.join(tempfile.gettempdir(), f"flask-llmstream-{os.getuid()}")), app_digest(app)
    )
    return private_folder(os.path.join(private_folder(root), purpose))
