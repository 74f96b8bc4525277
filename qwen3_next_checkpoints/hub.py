"""Names on the hub: a repository's files, downloaded once into the hub library's cache."""

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import DryRunError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars

FILES = {"allow_patterns": ["*.json", "*.jinja", "*.txt", "*.safetensors"], "ignore_patterns": ["*/*"]}


@functools.cache  # the tokenizer asks, then the model
def download(repo: str, **options: Any) -> Path:
    """The folder of a repository (owner/name), after downloading what the cache lacks of it. options: the hub library's
    own revision, token, cache_dir and local_files_only.

    Reports size, place and free space on stderr first; without a hub, what is in the cache has to do. Raises ValueError
    if the disk is too full, FileNotFoundError if hub and cache fail or the download breaks off: files got so far stay.
    """
    home = Path(options.get("cache_dir") or constants.HF_HUB_CACHE)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        files = snapshot_download(repo, dry_run=True, **FILES, **options)
    except DryRunError:  # no hub, or none that knows the name
        files = []
    except Exception as error:  # its own, its HTTP library's, the operating system's
        raise FileNotFoundError(f"{repo}: no such folder, and {one_line(error)}") from error
    lacking = [file for file in files if file.will_download]
    if files and not lacking:
        return Path(files[0].local_path).parent
    if lacking:
        size = sum(file.file_size for file in lacking)
        free = shutil.disk_usage(next(place for place in (home, *home.parents) if place.is_dir())).free
        room = f"{repo}: {size / 1e9:,.2f} GB to download to {home}, where {free / 1e9:,.2f} GB are free"
        if size > free:
            raise ValueError(f"{room}: too little (HF_HOME names another place)")
        print(room, file=sys.stderr)
    try:
        return Path(snapshot_download(repo, **FILES, **options))
    except Exception as error:
        why = f"no such folder, nor all of it in {home}"
        if lacking:
            why = "the download failed, the files got so far are kept"
        elif isinstance(error, RepositoryNotFoundError):
            why = "no such folder, and the hub has none either, or a private one"
        raise FileNotFoundError(f"{repo}: {why} ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """An exception's kind and message, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
