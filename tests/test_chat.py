"""Claim: `python chat.py` answers as one long prompt would, and gives the template all that it is asked to."""

import re
import signal
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

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
