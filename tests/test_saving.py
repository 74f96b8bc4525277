"""Claim: a save replaces a checkpoint as a whole or not at all, and leaves other people's files alone."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Timer

import pytest
import torch
from conftest import random_model

import qwen3_next
from qwen3_next_checkpoints import saving

if sys.platform == "win32":
    pytest.skip("the children are forked", allow_module_level=True)
import kill_saves
from kill_saves import OTHERS, SIZES, at_top, checkpoint_of, content, make_old


@pytest.fixture(scope="module")
def models():
    return kill_saves.make_models()


@pytest.fixture(params=["exchange", "two renames"])
def system(request, monkeypatch):
    """With and without the call that exchanges two names at once."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "no exchange of names")

    if request.param == "two renames":
        monkeypatch.setattr(saving, "exchange", refuse)
    return request.param


@pytest.fixture(scope="module")
def children():
    children = kill_saves.Children()
    yield children
    children.close()


PAIRS = [
    ("many shards", "two shards", True),
    ("one file", "many shards", True),
    ("theirs in shards", "one file", False),
]
PAIRS += [("nothing", "one file", True)]


@pytest.mark.parametrize(("old", "new", "exchange"), PAIRS)
def test_kills(models, children, old, new, exchange):
    """Catches new weights with an old config, or shards of two models, after kill -9. tests/kill_saves.py does it at
    all steps, and for all pairs of layouts.
    """
    assert kill_saves.kill_at_every_step(children, old, new, exchange, models, every=7).total() > 1


def beside(folder: Path) -> list[str]:
    """What lies next to a folder under a name that begins as its own."""
    return sorted(path.name for path in folder.parent.glob(f"{folder.name}?*"))


@pytest.mark.parametrize("links", ["links", "no links"])
@pytest.mark.parametrize("old", ["an empty folder", "many shards", "theirs"])
def test_other_files_stay(models, tmp_path, monkeypatch, system, old, links):
    """Catches a save that deletes model_visual or model-lora, writes through a link, forgets a subfolder or rights."""
    folder = tmp_path / "model"
    make_old(folder, old, models[0])
    before = content(folder)
    rights = folder.stat()
    if links == "no links":
        monkeypatch.setattr("os.link", lambda *_, **__: os.stat("/nowhere"))
    (tmp_path / "link").symlink_to(folder)
    models[1].save_pretrained(tmp_path / "link", max_shard_size=SIZES["two shards"])
    after = content(folder)
    others = before.keys() - checkpoint_of(before).keys()
    assert others == {*OTHERS, "config.json.tmp"}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert set(checkpoint_of(after)) == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert (folder / "config.json.tmp").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    found = folder.stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (rights.st_mode, rights.st_uid, rights.st_gid)
    assert len({(folder / name).stat().st_mode for name in checkpoint_of(after)}) == 1, "not for the same readers"
    assert beside(folder) == []
    assert kill_saves.is_read_as(folder, models[1])


def test_two_processes_save_at_once(models, tmp_path, system):
    """Catches shards of one with those of another; one of them wins as a whole, or is refused by name."""
    wholes = []
    for i, model in enumerate(models):
        saving.save(model, tmp_path / f"whole{i}", SIZES["many shards"])
        wholes.append(content(tmp_path / f"whole{i}"))
    folder = tmp_path / "model"
    refused = 0
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            if number % 4 == 0:
                folder.mkdir(exist_ok=True)
                (folder / "notes").write_text("notes")
            barrier = Barrier(2)

            def save(model, barrier=barrier):
                barrier.wait()
                try:
                    saving.save(model, folder, SIZES["many shards"])
                except OSError as error:
                    assert str(folder) in str(error)
                    return 1
                return 0

            counts = list(pool.map(save, models))
            refused += sum(counts)
            assert sum(counts) < 2, "both were refused"
            found = content(folder)
            found.pop("notes")
            assert found in wholes
            assert beside(folder) == []
    assert refused == 0 or system == "two renames"


def test_a_saver_that_found_no_folder(models, tmp_path, monkeypatch, system):
    """Catches other people's files that go with the slower of two savers: the faster one had none to take them from."""
    folder = tmp_path / "model"
    make_old(folder, "one file", models[0])
    swap = saving.swap

    def late(new, place, old):
        monkeypatch.setattr(saving, "swap", swap)
        place.rename(old)
        saving.save(models[1], place, SIZES["many shards"])
        new.rename(place)

    monkeypatch.setattr(saving, "swap", late)
    with pytest.raises(OSError, match="nothing was saved"):
        saving.save(models[0], folder, SIZES["one file"])
    assert all((folder / name).read_text() == name for name in kill_saves.OTHERS)
    assert kill_saves.is_read_as(folder, models[1])
    assert beside(folder) == []


def test_a_folder_that_is_gone_for_a_moment(models, tmp_path, monkeypatch, system):
    """Catches an old folder that stays, with files that nobody brings: another save was between its two renames."""
    folder = tmp_path / "model"
    make_old(folder, "one file", models[0])
    swap = saving.swap

    def then_gone(new, place, old):
        swap(new, place, old)
        (old if old.exists() else new).joinpath("late").write_text("late")  # came while the folder was copied
        place.rename(tmp_path / "aside")
        Timer(0.2, (tmp_path / "aside").rename, [place]).start()

    monkeypatch.setattr(saving, "swap", then_gone)
    saving.save(models[1], folder, SIZES["one file"])
    assert all((folder / name).read_text() == name for name in (*kill_saves.OTHERS, "late"))
    assert kill_saves.is_read_as(folder, models[1])
    assert beside(folder) == []


def test_files_that_come_while_it_saves(models, tmp_path, monkeypatch, system):
    """Catches the notes of another process that are lost with the old folder, or put back to an older version."""
    folder = tmp_path / "model"
    make_old(folder, "one file", models[0])
    swap = saving.swap

    def late(*names):
        (folder / "late").write_text("late")
        (folder / "new").write_text("changed")
        (folder / "new").replace(folder / "tokenizer.json")  # after it was linked
        swap(*names)
        (folder / "new").write_text("changed after the swap")
        (folder / "new").replace(folder / "model-lora.safetensors")

    monkeypatch.setattr(saving, "swap", late)
    models[1].save_pretrained(folder)
    assert (folder / "late").read_text() == "late"
    assert (folder / "tokenizer.json").read_text() == "changed"
    assert (folder / "model-lora.safetensors").read_text() == "changed after the swap"
    assert beside(folder) == []


def test_from_inside(models, tmp_path, monkeypatch, system):
    """Catches a process whose own folder is gone after it has saved there."""
    folder = tmp_path / "model"
    make_old(folder, "one file", models[0])
    monkeypatch.chdir(folder)
    models[1].save_pretrained(".")
    assert Path("config.json").samefile(folder / "config.json")
    assert kill_saves.is_read_as(Path("."), models[1])


def test_files_written_along(models, tmp_path, system):
    """Catches a tokenizer that is the old one's, or comes later than the weights."""
    make_old(tmp_path / "model", "one file", models[0])
    saving.save(models[1], tmp_path / "model", "5GB", {"tokenizer.json": b"new"})
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == b"new"
    assert at_top(content(tmp_path / "model")).keys() >= {"config.json", "model-lora.safetensors"}


def test_what_can_not_be_replaced(models, tmp_path, monkeypatch):
    """Catches a file that is moved aside for a folder, and a mounted disk found to be one when all has been written."""
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="file: nothing was saved"):
        models[0].save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    monkeypatch.setattr(saving, "save_file", lambda *_, **__: pytest.fail("written in vain"))
    with pytest.raises(OSError, match="model: nothing was saved .*mounted"):
        models[0].save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_interrupts(models, tmp_path, monkeypatch, system):
    """Catches Ctrl-C that leaves a half-written folder behind, or takes the new one for it and deletes the old one."""
    folder = tmp_path / "model"
    make_old(folder, "one file", models[0])
    before = content(folder)
    swap = saving.swap

    def interrupt(*names):
        raise KeyboardInterrupt

    def interrupt_after(*names):
        swap(*names)
        raise KeyboardInterrupt

    for function, state in ((interrupt, before), (interrupt_after, None)):
        monkeypatch.setattr(saving, "swap", function)
        with pytest.raises(KeyboardInterrupt):
            models[1].save_pretrained(folder)
        found = content(folder)
        assert found == state if state else kill_saves.is_read_as(folder, models[1])
        assert {*OTHERS} <= found.keys()
        assert beside(folder) == []


def test_a_reader_in_the_meantime(models, tmp_path, monkeypatch, system):
    """Catches one model's config with another one's weights, read while a save replaced the folder."""
    folder = tmp_path / "model"
    make_old(folder, "many shards", models[0])
    read = qwen3_next.read_checkpoint

    def read_later(place):
        models[1].save_pretrained(folder, max_shard_size=SIZES["many shards"])
        return read(place)

    monkeypatch.setattr(qwen3_next, "read_checkpoint", read_later)
    with pytest.raises(ValueError, match="model: was replaced by another save"):
        qwen3_next.Qwen3NextForCausalLM.from_pretrained(folder)


def test_a_model_saved_over_itself(tmp_path):
    """Catches a mapped model whose weights change or go when the folder that it was read from is replaced."""
    random_model(torch.float32, seed=0).save_pretrained(tmp_path / "model")
    model = kill_saves.Qwen3NextForCausalLM.from_pretrained(tmp_path / "model")
    expected = {name: p.clone() for name, p in model.named_parameters()}
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    again = kill_saves.Qwen3NextForCausalLM.from_pretrained(tmp_path / "model")
    for found in (model, again):
        assert all(torch.equal(p, expected[name]) for name, p in found.named_parameters())
