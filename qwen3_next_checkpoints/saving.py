"""A model as a checkpoint folder: safetensors, in shards with an index if they need several, and config.json.

A checkpoint is several files, and a mixture of two of them may load without a word. So nothing is written into the
folder that is to hold it. A new folder is filled next to it, with links to the old one's other files, and then the two
swap names. Whatever interrupts this, a full disk or kill -9, the folder is the old one or the new one, as a whole; what
is left over lies next to it, as NAME.saving-1a2b3c4d.
"""

import ctypes
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory as split
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

# The files that a new checkpoint replaces. All others stay, model-lora.safetensors and model.safetensors.bak too.
SHARD = r"model-\d{5}-of-\d{5}\.safetensors"
CHECKPOINT = re.compile(rf"(generation_)?config\.json|(model|mtp)\.safetensors|model\.safetensors\.index\.json|{SHARD}")


def save(model: nn.Module, path: str | os.PathLike, max_shard_size: int | str, others: dict[str, bytes] | None = None):
    """Writes the weights, config.json and generation_config.json of a model that has `config`, `generation_config`.

    max_shard_size: bytes, or a string such as "500MB"; others: more files to write with them, by name. What is kept in
    8 bits is written dequantised. Raises ValueError for the size. A failure is an OSError, and leaves what was there.
    """
    size = max_shard_size  # by 0 or less, each tensor would get a file of its own
    right = size > 0 if isinstance(size, (int, float)) else re.fullmatch(r"(?=.*[1-9])\d+(\.\d*)?[KMGT]B", str(size))
    if not right:
        raise ValueError(f"max_shard_size is {size!r}, expected bytes, or like '5GB'")
    sizes = {
        name: p.numel() * max(p.itemsize, model.dtype.itemsize if p.itemsize == 1 else 0)
        for name, p in model.named_parameters()
    }
    shards = split(sizes, get_storage_size=int, filename_pattern="model{suffix}.safetensors", max_shard_size=size)
    config = {"architectures": [type(model).__name__], **model.config.to_dict()}
    config["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    texts = {"config.json": {key: x for key, x in config.items() if key not in ("quantization_config", "dtype")}}
    if model.generation_config:
        texts["generation_config.json"] = model.generation_config
    if shards.is_sharded:
        texts["model.safetensors.index.json"] = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    with replacing(Path(path).resolve()) as folder:
        files = shards.filename_to_tensors.items()
        for name, keys in tqdm(files, "saving", unit="file", leave=False, delay=2, disable=None):
            save_file({key: full_weight(model, key) for key in keys}, folder / name, metadata={"format": "pt"})
        for name, content in texts.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name in shards.filename_to_tensors:  # the library writes them for their owner alone
            shutil.copymode(folder / "config.json", folder / name)
        for name, data in (others or {}).items():
            (folder / name).write_bytes(data)


def full_weight(model: nn.Module, name: str) -> Tensor:
    """A parameter as it is saved: contiguous, and dequantised if it is kept in 8 bits."""
    owner = model.get_submodule(name.rpartition(".")[0])
    p = model.get_parameter(name)
    if p.dtype == torch.float8_e4m3fn:
        p = owner.dense(model.dtype)
    return p.detach().contiguous()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write a checkpoint to. At the end it takes the place of `folder`, and all that is there and no
    checkpoint's: files at once, folders one by one just after. If two processes save, one of them wins as a whole.

    Raises OSError if anything fails, also for a folder in the place of a file, and then leaves `folder` as it was.
    """
    mark = secrets.token_hex(4)
    new, old = (folder.with_name(f"{folder.name}.{kind}-{mark}") for kind in ("saving", "old"))
    inside, ours = False, None
    written, linked = set(), {}
    try:
        if os.path.ismount(folder):
            raise OSError("a mounted disk keeps its place: save to a folder on it")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        ours = new.stat()
        yield new
        written = set(os.listdir(new))
        linked = link_others(folder, new, written)
        inside = folder.is_dir() and os.path.samefile(os.curdir, folder)
        swap(new, folder, old)
    except Exception as error:  # the disk is full, or whatever the library or the operating system raises
        raise OSError(f"{folder}: nothing was saved ({' '.join(str(error).split())})") from error
    finally:
        lost = ours is not None and new.is_dir() and os.path.samestat(new.stat(), ours)
        if lost:  # it did not come to the swap, or another process was faster
            shutil.rmtree(new, ignore_errors=True)
        for left in (old,) if lost else (new, old):
            if ours and left.is_dir() and is_there(folder):
                empty(left, folder, set() if lost else written, {} if lost else linked, lost)
        if inside:  # where this process was, there is nothing left
            os.chdir(folder)


def is_there(folder: Path) -> bool:
    """Whether there is such a folder, perhaps in a moment: another save may be between its two renames."""
    for _ in range(100):
        if folder.is_dir():
            return True
        time.sleep(0.01)
    return False


def is_replaced(entry: os.DirEntry, written: set[str]) -> bool:
    """Whether a file of the old folder is a checkpoint's, or has been written anew."""
    return entry.name in written or CHECKPOINT.fullmatch(entry.name) is not None


def link_others(folder: Path, new: Path, written: set[str]) -> dict[str, os.stat_result]:
    """Gives the new folder the old one's rights and, by links, its other files, which are returned."""
    linked = {}
    if not folder.exists():
        return linked
    shutil.copymode(folder, new)
    if hasattr(os, "chown"):
        with suppress(PermissionError):
            os.chown(new, folder.stat().st_uid, folder.stat().st_gid)
    for entry in os.scandir(folder):
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_replaced(entry, written):
            if is_folder:
                raise IsADirectoryError(f"{entry.name} is a folder")
        elif not is_folder:
            try:
                os.link(entry.path, new / entry.name, follow_symlinks=False)
                linked[entry.name] = entry.stat(follow_symlinks=False)
            except (OSError, NotImplementedError):  # a disk without links, or a file of someone else's
                shutil.copy2(entry.path, new / entry.name, follow_symlinks=False)
    return linked


def exchange(one: Path, other: Path):
    """Swaps the names of two folders, so that at no time one is missing. Raises OSError where that can't be done: it
    takes Linux, and a file system that has it.
    """
    if sys.platform != "linux":
        raise OSError("no exchange of names")
    libc = ctypes.CDLL(None, use_errno=True)
    here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if not hasattr(libc, "renameat2") or libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), flag):
        raise OSError(ctypes.get_errno(), "no exchange of names")


def swap(new: Path, folder: Path, old: Path):
    """Puts the new folder in the old one's place, which is then called `new` or `old`, if there was one."""
    try:
        exchange(new, folder)
        return
    except OSError:  # then by two steps, between which there is none
        with suppress(FileNotFoundError):
            folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            with suppress(OSError):  # another process was here first
                old.rename(folder)
        raise


def empty(old: Path, folder: Path, written: set[str], linked: dict[str, os.stat_result], lost: bool):
    """Brings what is left in the old folder, and no checkpoint's, to the new one; then deletes the old one. Files that
    came while it was copied are brought, too. If another process has won, its files stay where both have one, and it
    gets the others: it may have found no folder to take them from. Raises OSError if a name is taken.
    """
    entries = list(os.scandir(old))
    for entry in entries:
        known = linked.get(entry.name)
        known = known is not None and os.path.samestat(entry.stat(follow_symlinks=False), known)
        taken = lost and os.path.lexists(folder / entry.name)
        if not known and not taken and not is_replaced(entry, written) and is_there(folder):
            os.replace(entry.path, folder / entry.name)
    for entry in entries:
        Path(entry.path).unlink(missing_ok=True)
    old.rmdir()
