"""Claim: `python chat.py` answers as one long prompt would, and gives the template all that it is asked to."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT

import chat
from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer


def run(*arguments, **kwargs):
    command = [sys.executable, str(ROOT / "chat.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, **kwargs)


def test_template_variables(tmp_path, checkpoint):
    """Catches a system message, tools or arguments that do not reach the template."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{{ raise_exception(messages | map(attribute='content') | join('+') ~ tools | tojson ~ enable_thinking) }}"
    )
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    result = run(
        *("--model", tmp_path, "--system", "be brief", "--tools", tmp_path / "tools.json"),
        *("--template-arg", "enable_thinking=false"),
        input="hi\n",
    )
    assert result.stderr.strip().endswith('be brief+hi[{"name": "f"}]False')


def test_chat_is_the_same_as_one_long_prompt(tiny):
    """Catches a cache that loses its place between turns, and answers that do not see what was said before."""
    tokenizer, model = Qwen3NextTokenizer.from_pretrained(tiny), Qwen3NextForCausalLM.from_pretrained(tiny, "float32")
    questions, messages, answers = ["Tell me a story about a fox.", "Thank you! Another one.", "Hello!"], [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        inputs = tokenizer([tokenizer.apply_chat_template(messages)], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=50, do_sample=False)[0, inputs.input_ids.shape[1] :]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    result = run(*("--greedy", "--max-new-tokens", 50, "--dtype", "float32", "--stats"), input="\n".join(questions))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(text + "\n" for text in answers)
    counts = [int(n) for n in re.findall(r"prompt: (\d+) tokens", result.stderr)]
    assert counts == sorted(counts)


# As Qwen3's: earlier answers are written without what was thought, and the prompt for an answer begins a thought
THINKING = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{{- m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{- m.content }}{% endif %}
{{- '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def tiny_model(tiny):
    return Qwen3NextForCausalLM.from_pretrained(tiny, "float32")


@pytest.fixture
def thinker(tiny, tiny_model):
    """A new conversation by a template that leaves out thoughts, and a list of how many tokens each pass reads."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = THINKING
    read = []
    hook = tiny_model.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[4].shape[1]))
    yield chat.Conversation(tokenizer, tiny_model, {}, "You tell stories."), read
    hook.remove()


def expected_answer(conversation) -> str:
    """To the last message, from the whole conversation at once."""
    ids = conversation.tokenizer.encode(conversation.render())
    row = torch.tensor([ids])
    out = conversation.model.generate(row, **GREEDY)[0, len(ids) :]
    return conversation.tokenizer.decode(out, skip_special_tokens=True)


def say(conversation, message: str) -> str:
    conversation.answer(message, GREEDY, None, {})
    return conversation.messages[-1]["content"]


QUESTIONS = ["Tell me a story about a fox and a lantern.", "Thank you! Another one.", "And a third one, about a crow."]


def test_what_survives_is_not_read_again(thinker):
    """Catches a conversation that is read from its beginning after every answer whose thoughts are left out."""
    conversation, read = thinker
    assert conversation.drops_thoughts
    kept = 0
    for question in QUESTIONS:
        before = len(read)
        answer = say(conversation, question)
        passes = read[before:]
        prompt = conversation.tokenizer.apply_chat_template(conversation.messages[:-1])
        length = len(conversation.tokenizer.encode(prompt))
        assert sum(passes) - (len(conversation.printer.ids) - 1) == length - kept  # each token of the rest once
        kept = len(conversation.kept[0])
        assert 0 < kept < length
        said = conversation.messages.pop()
        assert answer == expected_answer(conversation)
        conversation.messages.append(said)


def test_a_thought_is_left_out_by_the_template(tiny, tiny_model):
    """Catches a cache that is kept twice for a template that leaves nothing out."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    conversation = chat.Conversation(tokenizer, tiny_model, {}, None)
    assert not conversation.drops_thoughts
    say(conversation, QUESTIONS[0])
    assert conversation.kept is None


def test_after_an_interrupt(thinker, monkeypatch):
    """Catches a cache that a broken pass has left behind, and an answer that is lost."""
    conversation, _ = thinker
    say(conversation, QUESTIONS[0])
    step = chat.Printer.__call__

    def break_off(printer, token):
        step(printer, token)
        if len(printer.ids) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat.Printer, "__call__", break_off)
        with pytest.raises(KeyboardInterrupt):
            say(conversation, QUESTIONS[1])
    conversation.interrupted()
    assert len(conversation.printer.ids) == 3
    said = conversation.tokenizer.decode(conversation.printer.ids, skip_special_tokens=True)
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    say(conversation, QUESTIONS[2])
    said = conversation.messages.pop()["content"]
    assert said == expected_answer(conversation)


@pytest.mark.parametrize("template", [None, THINKING])
def test_saving_and_loading(tiny, tiny_model, tmp_path, template):
    """Catches a conversation that comes back without its cache, without its beginning, or with another model's."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = template or tokenizer.chat_template
    first = chat.Conversation(tokenizer, tiny_model, {}, None)
    for question in QUESTIONS[:2]:
        say(first, question)
    told = first.save(str(tmp_path / "talk"))
    assert re.fullmatch(r".*talk.json and .*talk.safetensors: \d+ tokens, \d\.\d\d MB", told)
    second = chat.Conversation(tokenizer, tiny_model, {}, None)
    second.load(str(tmp_path / "talk"))
    assert second.messages == first.messages
    read = []
    hook = tiny_model.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[4].shape[1]))
    answers = [say(conversation, QUESTIONS[2]) for conversation in (first, second)]
    hook.remove()
    assert answers[0] == answers[1]
    assert read[: len(read) // 2] == read[len(read) // 2 :]
    other = Qwen3NextForCausalLM.from_pretrained(tiny, "float32")
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    third = chat.Conversation(tokenizer, other, {}, None)
    with pytest.raises(ValueError, match="talk.json: was saved with another model"):
        third.load(str(tmp_path / "talk"))
    assert (third.messages, third.ids) == ([], [])
    path = tmp_path / "talk.json"
    content = json.loads(path.read_text())
    for change in ({"ids": content["ids"][:-3]}, {"ids": "abc"}, {"messages": 5}, {"messages": [{"role": "user"}]}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match="talk"):
            third.load(str(tmp_path / "talk"))


def test_commands(tiny, tmp_path, monkeypatch, capsys):
    """Catches /save and /load that are answered as messages, or that end the conversation when they fail."""
    name = str(tmp_path / "talk")
    options = ["--model", str(tiny), "--greedy", "--max-new-tokens", "5", "--device", "cpu"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hello!\n/save {name}\n/load {name}-none\nMore.\n"))
    assert chat.main(options) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert f"/save: {name}.json and {name}.safetensors: " in err
    assert f"/load: {name}-none.json: no such file" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/load {name}\nMore.\n"))
    assert chat.main(options) == 0
    again, err = capsys.readouterr()
    assert f"/load: {name}.json and {name}.safetensors: 2 messages, " in err
    assert again.splitlines() == out.splitlines()[1:]


def test_messages_of_several_lines(monkeypatch):
    """Catches a pasted text that is answered line by line."""
    quotes = chat.QUOTES
    text = f"one\n{quotes}\n  two\n\nthree\n{quotes}\n\nfour\n{quotes}\nfive"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert list(chat.ask()) == ["one", "two\n\nthree", "four", "five"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal of Linux and GNU's readline")
def test_long_lines_and_pastes_in_a_terminal():
    """Catches a line cut at 4,095 characters, where a terminal's own editing ends, and a paste taken line by line."""
    import pty

    code = "import chat\nfor text in chat.ask():\n    print('LENGTH', len(text), text.count(chr(10)), flush=True)"
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment) as process:
        os.close(slave)
        seen = b""

        def wait_for(mark: bytes) -> bytes:
            nonlocal seen
            end = time.monotonic() + 300
            while mark not in seen and time.monotonic() < end:
                if select.select([master], [], [], 1)[0]:
                    seen += os.read(master, 1 << 16)
            assert mark in seen, seen[-300:]
            before, _, seen = seen.partition(mark)
            return before

        wait_for(b"> ")
        os.write(master, b"x" * 6000 + b"\r")
        wait_for(b"LENGTH 6000 0")
        wait_for(b"> ")
        os.write(master, b"\x1b[200~one\ntwo\nthree\x1b[201~")
        os.write(master, b"\r")
        wait_for(b"LENGTH 13 2")
        wait_for(b"> ")
        os.write(master, b"\x04")
        assert process.wait(60) == 0
    os.close(master)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupts():
    """Catches a Ctrl-C that ends the conversation, loses it, or prints a traceback; the second one leaves with 130."""
    command = [sys.executable, str(ROOT / "chat.py"), "--max-new-tokens", "100000", "--template-arg", "a=1"]

    def heed():  # a job that a shell has put into the background ignores Ctrl-C, and so would we
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [*command, "--temperature", "50", "--stop", "@@@"], bufsize=0, preexec_fn=heed, **pipes
    ) as process:
        patience = threading.Timer(120, process.kill)  # then every read below ends, and an assertion fails
        patience.start()

        def wait_for_the_prompt():
            while (character := process.stderr.read(1)) != b">":
                assert character, "the conversation has ended"

        wait_for_the_prompt()
        for message in (b"Tell me a story.\n", b"Hello!\n"):
            process.stdin.write(message)
            assert process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            wait_for_the_prompt()  # nothing of this answer comes any more
            assert process.stdout.read(1 << 16)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
        patience.cancel()
    assert b"Traceback" not in rest


def test_stop_strings_are_held_back(tiny):
    """Catches a stop string missed because it spans tokens, and text printed from it or held back for nothing."""
    options = ("--greedy", "--max-new-tokens", 60)
    free = run(*options, input="Once upon a time\n").stdout.rstrip("\n")
    stop = free[60:75]
    assert len(Qwen3NextTokenizer.from_pretrained(tiny).encode(stop)) > 1
    stopped = run(*options, "--stop", stop, "--stop", "@@@", input="Once upon a time\n").stdout
    assert stopped == free[: free.index(stop)] + "\n"
    assert run(*options, "--stop", free[-6:] + "?!", input="Once upon a time\n").stdout == free + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--prompt", "a"], 2, "--prompt"),
        (["--tools", "no-such-file"], 1, "no-such-file"),
        (["--template-arg", "x=y"], 1, "--template-arg x"),
        (["--model", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_user_errors(arguments, code, named):
    """Catches a traceback, text on standard output, or a message that does not name the option."""
    result = run(*arguments, input="Hello!\n")
    assert (result.returncode, result.stdout) == (code, "")
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    if code == 1:
        assert len(result.stderr.splitlines()) == 1
