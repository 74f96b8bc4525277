"""qwen3_next.py as a port under test:

python verify/conform.py --cmd "python verify/examples/this_project.py --model {model} --like {trace} --trace {out}"
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from qwen3_next import Qwen3NextForCausalLM  # noqa: E402
from verify import scenarios  # noqa: E402
from verify.stages import read_trace, write_trace  # noqa: E402

parser = argparse.ArgumentParser()
for option in ("--model", "--like", "--trace"):
    parser.add_argument(option, type=Path, required=True)
parser.add_argument("--dtype", default="float32")
args = parser.parse_args()
like = read_trace(args.like)
model = Qwen3NextForCausalLM.from_pretrained(args.model, args.dtype)
given = {step: {key: like.steps[step][key] for key in fed.get("inputs", [])} for step, fed in like.tokens.items()}
steps, lines = scenarios.run(model, like.tokens, given=given)
about = {"producer": "qwen3_next.py", "dtype": args.dtype, "folder": args.model, "lines": lines}
write_trace(args.trace, {step: found for step, found in steps.items() if found}, like.tokens, **about)
