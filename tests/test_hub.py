"""Claim: a hub name works like a folder: what is missing is announced, downloaded once, and then needs no hub.

The hub is a stand-in on this machine: a small HTTP server that answers what the hub library asks.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from conftest import ROOT

from qwen3_next import find_checkpoint, main

REPO, REVISION = "some-owner/some.name", "0123456789abcdef0123456789abcdef01234567"
ASKED = ("--prompt", "Hello", "--greedy", "--max-new-tokens", "3")
OTHERS = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"raise SystemExit",
    "original/model.safetensors": b"the same in another format",
    "merges.txt": b"#version: 0.2",
}
WANTED = {
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


class Hub(ThreadingHTTPServer):
    """Serves one repository. requests: (method, path) of all so far; breaks, forbidden: see the tests."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.revision, self.requests = dict(files), REVISION, []
        self.breaks, self.forbidden = set(), set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def fetched(self) -> list[str]:
        """The files that were asked for, one entry for each time, and forgets them."""
        names = [path.partition(f"/resolve/{self.revision}/")[2] for method, path in self.requests if method == "GET"]
        self.requests.clear()
        return sorted(filter(None, names))

    def wait_for_the_others(self):
        """Until all other wanted files have been asked for: the library fetches several at once, and begins no more of
        them once one has failed.
        """
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            asked = {path.rpartition("/")[2] for method, path in [*self.requests] if method == "GET"}
            if asked >= WANTED - self.forbidden:
                return
            time.sleep(0.01)

    def describe(self, name: str) -> dict:
        """A file as the hub lists it: by git's hash, and those that git does not hold by their SHA-256."""
        data = self.files[name]
        about = {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        if name.endswith((".safetensors", ".bin")):
            about["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def reply(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        hub, path = self.server, urlsplit(self.path).path
        hub.requests.append((self.command, self.path))
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            blobs = "blobs=" in self.path
            siblings = [{"rfilename": name, **(hub.describe(name) if blobs else {})} for name in hub.files]
            return self.reply(200, json.dumps({"id": REPO, "sha": hub.revision, "siblings": siblings}).encode())
        if path == f"/api/models/{REPO}/tree/{hub.revision}":
            tree = [{"type": "file", "path": name, **hub.describe(name)} for name in hub.files]
            tree = [{**entry, "oid": entry.pop("blobId")} for entry in tree]
            for entry in tree:
                if "lfs" in entry:
                    entry["lfs"]["oid"] = entry["lfs"].pop("sha256")
            return self.reply(200, json.dumps(tree).encode())
        name = path.removeprefix(f"/{REPO}/resolve/{hub.revision}/")
        if name not in hub.files:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if name in hub.forbidden and self.command == "GET":
            hub.wait_for_the_others()
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Ask its owner.")
        data, about = hub.files[name], hub.describe(name)
        headers = {"ETag": f'"{about["lfs"]["sha256"] if "lfs" in about else about["blobId"]}"'}
        headers |= {"X_Repo_Commit": hub.revision, "Accept_Ranges": "bytes"}
        if self.command == "GET" and name in hub.breaks:
            hub.breaks.remove(name)
            self.close_connection = True
            return self.reply(200, data[: len(data) // 2], **headers, Content_Length=len(data))
        if "Range" in self.headers:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            hub.requests[-1] = (self.command, f"from {start} of {name}")
            return self.reply(206, data[start:], **headers)
        return self.reply(200, data, **headers)

    do_HEAD = do_GET


@pytest.fixture
def hub(checkpoint):
    server = Hub({path.name: path.read_bytes() for path in checkpoint.iterdir()} | OTHERS)
    yield server
    server.stop()


@pytest.fixture
def ask(hub, tmp_path):
    """The command line in a process of its own, whose hub is the stand-in and whose cache is empty at first."""

    def run(model: str = REPO, offline: bool = False, before: str = "pass") -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": str(int(offline)), "NO_PROXY": "*", "PYTHONPATH": str(ROOT)}
        code = f"import sys, qwen3_next; {before}; sys.exit(qwen3_next.main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "--model", model, *ASKED]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100)

    return run


def room(free: int) -> str:
    """Code after which the disk has this many bytes to spare."""
    return f"import shutil; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(0, 0, {free})"


def refused(result: subprocess.CompletedProcess, *named: str, lines: int = 1):
    """Exit code 1 and nothing but lines on standard error, the last of which names all these."""
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == lines, result.stderr
    for name in named:
        assert name in result.stderr.splitlines()[-1]


def test_downloads_once_and_answers(hub, ask, checkpoint, tmp_path, capsys):
    """Catches files that nobody needs (pickles, code, other formats), a second download, a cache that needs a hub."""
    assert main(["--model", str(checkpoint), *ASKED]) == 0
    expected = capsys.readouterr().out
    result = ask()
    assert (result.returncode, result.stdout) == (0, expected), result.stderr
    cache = tmp_path / "home" / "hub"
    form = rf"{REPO}: [\d.,]+ GB to download to {re.escape(str(cache))}, where [\d.,]+ GB are free\n"
    assert re.fullmatch(form, result.stderr)
    listed = [path for _, path in hub.requests if "/tree/" in path]
    assert len(listed) <= 2, listed  # once to know the size, once to download: the tokenizer's and the model's together
    assert hub.fetched() == sorted(WANTED)
    snapshot = next(cache.glob("models--*/snapshots/*"))
    assert {path.name for path in snapshot.iterdir()} == WANTED

    again = ask()
    assert (again.stdout, again.stderr) == (expected, "")
    assert len([path for _, path in hub.requests if path.startswith(f"/api/models/{REPO}")]) == 1  # is there a new one?
    hub.stop()
    for offline in (True, False):
        again = ask(offline=offline)
        assert (again.stdout, again.stderr) == (expected, "")


def test_a_connection_that_breaks(hub, ask):
    """Catches a file that is kept half, or fetched from its start again."""
    hub.breaks = {"model.safetensors"}
    chunks = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1 << 16"  # it keeps whole ones
    result = ask(before=chunks)
    if result.returncode:  # old versions of the library go on when they are asked again, new ones at once
        result = ask(before=chunks)
    assert result.returncode == 0, result.stderr
    assert not hub.breaks
    starts = [re.fullmatch(r"from (\d+) of model.safetensors", path) for _, path in hub.requests]
    assert [int(start[1]) > 400_000 for start in starts if start] == [True]


def test_a_download_that_fails(hub, ask):
    """Catches a partial cache taken for a whole one, and a size that counts what it has of any revision."""
    size = len(hub.files["model.safetensors"])
    hub.forbidden = {"model.safetensors"}
    refused(ask(before=room(sum(len(hub.files[name]) for name in WANTED))), REPO, "failed", "gated", lines=2)
    assert hub.fetched() == sorted(WANTED)  # the weights in vain
    refused(ask(offline=True), REPO, "model.safetensors")

    hub.forbidden = set()
    refused(ask(before=room(size - 1)), REPO, "too little")
    assert hub.fetched() == []
    hub.revision, hub.files["README.md"] = REVISION[::-1], b"another"
    result = ask(before=room(size))
    assert result.returncode == 0, result.stderr
    assert hub.fetched() == ["model.safetensors"]


def test_too_little_space(hub, ask, tmp_path):
    """Catches a download that fills the disk before it fails, and a message without what is needed and where."""
    size = sum(len(hub.files[name]) for name in WANTED)
    refused(ask(before=room(size - 1)), REPO, "too little", "0.00 GB", str(tmp_path / "home" / "hub"), "HF_HOME")
    assert hub.fetched() == []
    files = [path for path in (tmp_path / "home" / "hub").rglob("*") if path.is_file()]
    assert [path.name for path in files] in ([], ["main"])  # the revision that was looked at, and nothing of it


def test_names_that_lead_nowhere(hub, ask, tmp_path):
    """Catches a traceback, a path sent to the hub, and an unknown name confused with a hub that does not answer."""
    refused(ask("some-owner/another"), "some-owner/another", "no such folder", "the hub has none")
    with pytest.raises(FileNotFoundError, match="alphanumeric"):
        find_checkpoint("some-owner/what?", {})
    (tmp_path / "file").touch()
    for name in ("./no-such", "../no/such", "some-owner", "some-owner/some.name/", "/no-such", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match="not the name of a hub repository"):
            find_checkpoint(name, {})
    hub.stop()
    refused(ask(), REPO, "no such folder", str(tmp_path / "home" / "hub"), "refused")
