"""Kills a process that saves a checkpoint, at every step of it, and reads what it has left: the old model, or the new.

    python tests/kill_saves.py [--every N]

For all layouts of the old folder and the new one, with and without the system call that exchanges two names. The child
is killed before and after every call that makes, renames, links or removes a file, and in the middle of every file that
it writes. Then the folder is read by qwen3_next.py and by transformers, its other files are looked for, and another
process saves again. Prints how many kills of which kind there were, and ends with 1 if one of them has left a mixture.
"""

import argparse
import contextlib
import errno
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from checkpoints import SMALL
from conftest import random_model
from transformers import Qwen3NextForCausalLM as TheirModel
from transformers.utils import logging

from qwen3_next import Qwen3NextForCausalLM
from qwen3_next_checkpoints import saving

SIZES = {"one file": "5GB", "two shards": 6_000, "many shards": 2_500}
OLD = ["nothing", "an empty folder", *SIZES, "theirs", "theirs in shards"]
OTHERS = ("tokenizer.json", "model_visual.safetensors", "model-lora.safetensors", "model_ema.safetensors")
OTHERS += ("model.safetensors.bak", "notes/model.safetensors")
STEPS = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open", "os.chmod", "exchange"}


def make_models() -> list:
    """Two models whose weights and configs differ, but whose shapes do not: any mixture of them loads."""
    models = [random_model(torch.float32, seed, rope_theta=theta, **SMALL) for seed, theta in ((0, 1e4), (1, 2e4))]
    for n, model in enumerate(models):
        model.generation_config = {"top_k": n + 1}
    return models


def make_old(folder: Path, layout: str, model):
    """The folder as it is before: a checkpoint in one of the layouts, with files of other people's."""
    if layout == "nothing":
        return
    folder.mkdir(mode=0o750)
    if layout in SIZES:
        model.save_pretrained(folder, max_shard_size=SIZES[layout])
    elif layout.startswith("theirs"):
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            theirs = TheirModel.from_pretrained(place)
        theirs.save_pretrained(folder, max_shard_size="3KB" if "shards" in layout else "5GB")
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder.parent / "precious").write_text("precious")
    (folder / "config.json.tmp").symlink_to("../precious")


def content(folder: Path) -> dict[str, str]:
    """A digest of every file under a folder, by name; {} if there is none."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at_top(files: dict[str, str]) -> dict[str, str]:
    """Those not in subfolders."""
    return {name: digest for name, digest in files.items() if "/" not in name}


class Deadly:
    """Ends the process before step number `at`; steps are counted from 1."""

    def __init__(self, at: int):
        self.at, self.count = at, 0

    def __call__(self, event: str, arguments: tuple):
        writes = event != "open" or isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in STEPS and writes:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


class Children:
    """Makes children that save and die. They are forked from a process of its own, which has no threads."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end,), daemon=True)
        self.process.start()

    def save(self, folder: Path, size: int | str, exchange: bool, at: int = 0, limit: int = 0) -> str:
        """Saves the second model in a child that dies at a step, or when a file grows beyond a limit. Returns "killed",
        "saved" or "failed".
        """
        self.pipe.send((folder, size, exchange, at, limit))
        return self.pipe.recv()

    def close(self):
        self.pipe.send(None)
        self.process.join()


def serve(pipe: Connection):
    """The process of `Children`: forks one for each request."""
    torch.set_num_threads(1)
    model = make_models()[1]
    for request in iter(pipe.recv, None):
        pid = os.fork()
        if pid == 0:
            try:
                save_and_die(model, *request)
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        pipe.send("killed" if os.WIFSIGNALED(status) else "failed" if status else "saved")


def save_and_die(model, folder: Path, size: int | str, exchange: bool, at: int, limit: int):
    """The child."""
    swap_names = saving.exchange
    deadly = Deadly(at)

    def watched(one: Path, other: Path):
        deadly("exchange", (one, other))
        if not exchange:
            raise OSError(errno.ENOSYS, "no exchange of names")
        swap_names(one, other)

    saving.exchange = watched
    sys.addaudithook(deadly)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    saving.save(model, folder, size)


def checkpoint_of(files: dict[str, str]) -> dict[str, str]:
    """Those of a checkpoint."""
    return {name: digest for name, digest in files.items() if saving.CHECKPOINT.fullmatch(name)}


def is_read_as(folder: Path, model) -> bool:
    """Whether both readers find this model's weights and config in the folder."""
    ours = Qwen3NextForCausalLM.from_pretrained(folder)
    theirs = TheirModel.from_pretrained(folder)
    expected = dict(model.named_parameters())
    right = ours.config.rope_theta == theirs.config.rope_parameters["rope_theta"] == model.config.rope_theta
    for found in (ours, theirs):
        parameters = dict(found.named_parameters())
        right &= all(torch.equal(p, parameters[name]) for name, p in expected.items() if name in parameters)
    return right and ours.generation_config["top_k"] == model.generation_config["top_k"]


def check(folder: Path, before: dict, after: dict, models: list, exchange: bool, read: set) -> str:
    """Which of the two folders is left: "old", "new" or "moved aside". Raises AssertionError for what is neither."""
    now = content(folder)
    aside = [content(path) for path in folder.parent.glob(f"{folder.name}.*")]
    state = next((name for name, files in (("old", before), ("new", after)) if at_top(files) == at_top(now)), "")
    if not now and before and not exchange:  # between two renames
        assert before in aside, "the old folder is gone"
        state = "moved aside"
    assert state, f"a mixture: {sorted(now)}"
    for name in OTHERS if before else ():
        assert any(files.get(name) == before[name] for files in (now, *aside)), f"{name} is lost"
    digest = tuple(sorted(now.items()))
    if "config.json" in now and digest not in read:
        assert is_read_as(folder, models[state == "new"]), f"not read as the {state} model"
        read.add(digest)
    return state


def kill_at_every_step(children: Children, old: str, new: str, exchange: bool, models: list, every: int = 1) -> Counter:
    """All kills for one pair of layouts: how many there were, and what they left. Raises AssertionError as `check`."""
    counts: Counter = Counter()
    read: set = set()
    with tempfile.TemporaryDirectory() as place:
        origin, done, work = (Path(place) / name for name in ("origin", "done", "work"))
        for folder in (origin, done):
            folder.mkdir()
            make_old(folder / "model", old, models[0])
        before = content(origin / "model")
        assert children.save(done / "model", SIZES[new], exchange) == "saved"
        after = content(done / "model")
        files = {name: path.stat().st_size for path in (done / "model").iterdir() for name in [path.name]}
        sizes = sorted({size for name, size in files.items() if saving.CHECKPOINT.fullmatch(name) and "model" in name})
        limits = [limit for size in sizes for limit in (size // 2, size - 1)]
        deaths = [("in a file", {"limit": limit}) for limit in limits[::every]]
        deaths += [("at a step", {"at": step}) for step in range(1, 1000, every)]
        for kind, how in deaths:
            shutil.copytree(origin, work, symlinks=True)
            result = children.save(work / "model", SIZES[new], exchange, **how)
            where = f"{old} to {new}, {'exchange' if exchange else 'two renames'}, killed {kind}, {how}"
            try:
                assert result in ("killed", "saved"), result
                state = check(work / "model", before, after, models, exchange, read)
                if before:
                    assert (work / "precious").read_text() == "precious", "a file was overwritten through a link"
                if result == "killed":
                    counts[f"killed {kind}, left the {state} one"] += 1
                    saving.save(models[1], work / "model", SIZES[new])  # whatever was left, the next one saves
                    assert checkpoint_of(content(work / "model")) == checkpoint_of(after), "the next one was not saved"
            except (AssertionError, OSError) as error:
                raise AssertionError(f"{where}: {error}") from error
            left = sorted(path.name for path in work.iterdir())
            shutil.rmtree(work)
            if result == "saved" and kind == "at a step":  # there are no more steps
                assert state == "new", where
                assert left == (["model", "precious"] if before else ["model"]), (where, left)
                return counts
    raise AssertionError("the save did not end")


def main() -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    children, models = Children(), make_models()
    total, wrong = Counter(), 0
    for exchange in (True, False):
        for old in OLD:
            for new in SIZES:
                try:
                    counts = kill_at_every_step(children, old, new, exchange, models, args.every)
                except AssertionError as error:
                    print(f"WRONG: {error}")
                    wrong += 1
                    continue
                how = "exchange" if exchange else "two renames"
                print(f"{old} -> {new}, {how}: {counts.total()} kills", flush=True)
                total += counts
    children.close()
    for kind, n in sorted(total.items()):
        print(f"{n:6} {kind}")
    print(f"{total.total():6} kills in all, {wrong} pairs of layouts wrong")
    return min(wrong, 1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
