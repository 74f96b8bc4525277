"""llama.cpp's Qwen3-Next as a port under test, in float32, by llama-cpp-python.

    python verify/engines.py llama.cpp --more "--source DIR --gguf DIR"

--source is llama.cpp's own source, whose script converts the checkpoint; --gguf a folder that keeps what it has made.
llama.cpp has one width for keys and values, wants experts in every layer and always divides their weights by their sum:
of the golden models that is `ddda` alone.

Values come from its callback for each tensor that is computed, the states from what it saves of a sequence. Sequences
of a batch are its own sequences, which need no padding. MTP is a second context over the same model. Of this model,
`llama_memory_seq_rm` takes no tokens back; so a sequence is saved before each pass, and tokens are taken back as
llama.cpp's server does it: what was saved is restored, and what is kept is read again. It packs no rows, and computes
no gradients of this model. Its flash attention rounds to float16 on a CPU, and is switched off.
"""

import argparse
import ctypes
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from verify.stages import is_batch, read_trace, rename, stacked, write_trace  # noqa: E402

ALIASES = json.loads((Path(__file__).resolve().parents[1] / "aliases" / "llama_cpp.json").read_bytes())
LARGEST = 512  # tokens a call
MOST = 4  # sequences
NOT_HERE = {"op", "layers", "starts", "gradients"}
F32, I32 = llama_cpp.GGML_TYPE_F32, llama_cpp.GGML_TYPE_I32
FIRST = re.compile(r"model\.embed_tokens|mtp_tok_embd-\d+")  # the first tensor of a graph: it reads the tokens
TURNED = re.compile(r"(mtp_)?Qcur-\d+")  # by RoPE, from the positions


def check(config: dict):
    """Ends the program for a model that llama.cpp has no code for."""
    wanted = {
        "linear_value_head_dim": config["linear_key_head_dim"],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    for name, expected in wanted.items():
        if config.get(name, expected) != expected:
            sys.exit(f"llama.cpp takes {name} {expected!r} only, found {config[name]!r}")
    if not config["num_experts"]:
        sys.exit("llama.cpp takes num_experts above 0 only")


def to_gguf(folder: Path, source: Path, target: Path):
    """The checkpoint as llama.cpp's script converts it, which asks for the architecture, and for a tokenizer.

    The golden models have neither; ids are all that is fed.
    """
    command = """
import runpy, sys
source, folder, target = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
import conversion.qwen
def set_vocab(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
conversion.qwen.Qwen3NextModel.set_vocab = set_vocab
sys.argv = ["", folder, "--outfile", target, "--outtype", "f32"]
runpy.run_path(source + "/convert_hf_to_gguf.py", run_name="__main__")
"""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        config = json.loads((folder / "config.json").read_bytes())
        config["architectures"] = ["Qwen3NextForCausalLM"]
        (Path(copy) / "config.json").write_text(json.dumps(config))
        shutil.copy(folder / "model.safetensors", copy)
        given = [str(path) for path in (source, copy, target)]
        done = subprocess.run([sys.executable, "-c", command, *given], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder} was not converted: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")


# ---- Tensors --------------------------------------------------------------------------------------------------------


class Tensor(ctypes.Structure):
    """ggml_tensor, as far as it is read here."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    ]


libggml.ggml_get_name.restype = ctypes.c_char_p
libggml.ggml_get_name.argtypes = [ctypes.c_void_p]
libggml.ggml_get_data.restype = ctypes.c_void_p
libggml.ggml_get_data.argtypes = [ctypes.c_void_p]


def values(pointer: int) -> np.ndarray:
    """A copy of a tensor on the CPU, its four axes in NumPy's order."""
    tensor = Tensor.from_address(pointer)
    kind = np.dtype({F32: np.float32, I32: np.int32}[tensor.type])
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    size = kind.itemsize + sum((n - 1) * step for n, step in zip(shape, strides))
    data = (ctypes.c_char * size).from_address(libggml.ggml_get_data(pointer))
    return np.ndarray(shape, kind, data, strides=strides).copy()


class Recorder:
    """What a context computes: a dict by llama.cpp's names for each part that it cuts a batch into.

    A part has equally many tokens of each of its sequences, all of one before those of the next. `tokens`, `positions`
    and `count`, of the sequences, say which these are.
    """

    def __init__(self):
        self.parts: list[dict[str, np.ndarray]] = []
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self.see)

    def see(self, pointer: int, ask: bool, _) -> bool:
        """ggml's callback: whether it should stop after this tensor; and then, with its values."""
        name = libggml.ggml_get_name(pointer).decode()
        if ask:
            return bool(FIRST.fullmatch(name)) or rename(name, ALIASES) != [(name, {})]
        source = Tensor.from_address(pointer).src[1]
        if FIRST.fullmatch(name):
            self.parts.append({"tokens": values(source).ravel(), "count": np.array(1)})
        part = self.parts[-1]
        part[name] = values(pointer)
        if TURNED.fullmatch(name):
            part["positions"] = values(source).ravel()
        if name.startswith("conv_output_silu"):
            part["count"] = np.array(part[name].shape[1])
        return True

    def take(self) -> list[dict[str, np.ndarray]]:
        """The parts since the last call."""
        parts = self.parts
        self.parts = []
        return parts


def places_of(part: dict, rows: dict[int, list[int]], starts: dict[int, int]) -> list[tuple[int, slice, slice]]:
    """Which tokens of a part are which sequence's: (sequence, place in the part, place among its new tokens)."""
    tokens = part["tokens"].tolist()
    length = len(tokens) // int(part["count"])
    found = []
    for begin in range(0, len(tokens), length):
        here = slice(begin, begin + length)
        places = {}
        for sequence, row in rows.items():
            first = int(part["positions"][begin]) - starts[sequence]
            if first >= 0 and row[first : first + length] == tokens[here]:
                places[sequence] = slice(first, first + length)
        if len(places) != 1:
            sys.exit(
                "a part of a batch could be that of two sequences: they have the same tokens at the same positions"
            )
        found += [(sequence, here, place) for sequence, place in places.items()]
    return found


# ---- The engine -----------------------------------------------------------------------------------------------------


class Context:
    """A context of llama.cpp, of the model, or of its MTP layer, which reads hidden states as well."""

    def __init__(self, model: int, config: dict, mtp_of: int | None = None):
        self.config = config
        self.is_mtp = mtp_of is not None
        self.recorder = Recorder()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 2048
        params.n_batch = params.n_ubatch = LARGEST
        params.n_seq_max = MOST
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = F32  # else keys and values are rounded to float16
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cb_eval = self.recorder.callback
        if self.is_mtp:
            params.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP
            params.ctx_other = mtp_of
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            sys.exit("llama.cpp makes no context of this model")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(LARGEST, 0, 1)
        self.hidden = np.zeros((LARGEST, config["hidden_size"]), np.float32)
        if self.is_mtp:
            self.batch.embd = self.hidden.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Takes back a sequence's tokens from `start` on; False if llama.cpp refuses."""
        return llama_cpp.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def read(self, rows: dict[int, list[int]], starts: dict[int, int]) -> dict[int, dict[str, np.ndarray]]:
        """New tokens of some sequences, from the positions where they start -> each one's values by key, (T, ..)."""
        fed = [(sequence, i) for sequence, tokens in rows.items() for i in range(len(tokens))]
        for n, (sequence, i) in enumerate(fed):
            self.batch.token[n] = rows[sequence][i]
            self.batch.pos[n] = starts[sequence] + i
            self.batch.n_seq_id[n] = 1
            self.batch.seq_id[n][0] = sequence
            self.batch.logits[n] = 1
        self.batch.n_tokens = len(fed)
        code = llama_cpp.llama_decode(self.context, self.batch)
        if code:
            sys.exit(f"llama_decode ended with {code}")
        found: dict[int, dict] = {sequence: {} for sequence in rows}
        for part in self.recorder.take():
            named = self.named(part)
            for sequence, here, place in places_of(part, rows, starts):
                for key, x in named.items():
                    shape = (len(rows[sequence]), x.shape[1])
                    found[sequence].setdefault(key, np.zeros(shape, x.dtype))[place] = x[here]
        return found

    def named(self, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A part's values under our keys, (tokens, entries) each."""
        found = {}
        for name, x in part.items():
            for key, entry in rename(name, ALIASES):
                if entry and self.has(key):
                    found[self.own(key)] = x.reshape(len(part["tokens"]), -1)
        for key in found:
            if key.endswith(".q_l2norm"):  # its kernel scales q
                found[key] = found[key] * self.config["linear_key_head_dim"] ** -0.5
        return found

    def has(self, key: str) -> bool:
        """Whether the model has such a value: some of llama.cpp's names mean another one in each kind of layer."""
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(linear|self)_attn\..*", key)
        if not layer:
            return True
        full = (int(layer[1]) + 1) % self.config["full_attention_interval"] == 0
        return full == (layer[2] == "self")

    def own(self, key: str) -> str:
        """The key of a value of MTP, whose layer llama.cpp counts as one more."""
        if not self.is_mtp:
            return key
        key = {"model.norm.out": "mtp.norm.out", "lm_head.out": "mtp.logits"}.get(key, key)
        return key.replace(f"model.layers.{self.config['num_hidden_layers']}.", "mtp.layers.0.")

    def save(self, sequence: int) -> ctypes.Array:
        """All that llama.cpp holds of a sequence."""
        of = (sequence, llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE)
        saved = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size_ext(self.context, *of))()
        llama_cpp.llama_state_seq_get_data_ext(self.context, saved, len(saved), *of)
        return saved

    def restore(self, sequence: int, saved: ctypes.Array):
        """Makes a sequence what it was when it was saved."""
        self.forget(sequence)
        of = (sequence, llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE)
        if not llama_cpp.llama_state_seq_set_data_ext(self.context, saved, len(saved), *of):
            sys.exit("llama.cpp does not restore what it saved")

    def states(self, sequence: int) -> dict[str, np.ndarray]:
        """The states and windows that llama.cpp would save of a sequence."""
        of = (sequence, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        saved = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size_ext(self.context, *of))()
        llama_cpp.llama_state_seq_get_data_ext(self.context, saved, len(saved), *of)
        data = memoryview(bytes(saved))[4 * 7 :]  # magic, sequence, cells, position, sequences, transposed, layers
        c = self.config
        H, K = c["linear_num_value_heads"], c["linear_key_head_dim"]
        window = (-1, c["linear_conv_kernel_dim"] - 1)
        found = {}
        for kind, shape in (("conv_state", window), ("state", (H, K, K))):
            for i in range(c["num_hidden_layers"]):
                key = f"model.layers.{i}.linear_attn.{kind}"
                if self.has(key):
                    size = int.from_bytes(data[4:12], sys.byteorder)
                    found[key] = np.frombuffer(data[12 : 12 + size], np.float32).reshape(shape)
                    data = data[12 + size :]
        return {key: x.swapaxes(1, 2) if key.endswith(".state") else x for key, x in found.items()}  # (V, K) there


class Engine:
    """The model and its MTP layer, and what MTP has read of the one sequence that is drafted for."""

    def __init__(self, gguf: Path, config: dict):
        params = llama_cpp.llama_model_default_params()
        params.load_mtp = True
        model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), params)
        if not model:
            sys.exit(f"llama.cpp does not load {gguf}")
        self.main = Context(model, config)
        self.mtp = Context(model, config, self.main.context)
        self.hidden = np.zeros((0, config["hidden_size"]), np.float32)  # the model's own states
        self.drafted = self.hidden  # MTP's own, of the last draft
        self.saved = (0, self.main.save(0))  # the sequence before its last pass: how many tokens, and its memory
        self.own_rows = 0  # of MTP's cache: those from the model's own states, and tokens that are known

    def step(self, fed: dict) -> dict[str, np.ndarray]:
        """The values of a step."""
        if "drafts" in fed:
            return self.draft(fed)
        if not fed["tokens"]:
            return self.take_back(fed["before"])
        batch = is_batch(fed["tokens"])
        rows, before = (fed["tokens"], fed["before"]) if batch else ([fed["tokens"]], [fed["before"]])
        slots = fed.get("slots", range(len(rows)))
        for slot, past in zip(slots, before):
            if not past:
                self.main.forget(slot)
        if not batch:
            self.saved = (len(fed["before"]), self.main.save(0))
        read = self.main.read(dict(zip(slots, rows)), dict(zip(slots, map(len, before))))
        found = [{**read[slot], **self.main.states(slot)} for slot in slots]
        if batch:
            return {key: stacked([one[key] for one in found]) for key in found[0]}
        return {**found[0], **self.follow(fed, found[0]["model.norm.out"])}

    def follow(self, fed: dict, hidden: np.ndarray) -> dict[str, np.ndarray]:
        """Keeps the model's new states; of a sequence that begins, MTP's values as well."""
        if fed["before"]:
            self.hidden = np.concatenate([self.hidden, hidden])
            return {}
        self.hidden = hidden
        self.mtp.forget(0)
        self.own_rows = len(hidden) - 1
        return self.predict(fed["tokens"][1:], hidden[:-1], 0)

    def predict(self, tokens: list[int], hidden: np.ndarray, start: int) -> dict[str, np.ndarray]:
        """MTP's values for some rows, from position `start` on: each a hidden state, and the token after it."""
        self.mtp.hidden[: len(tokens)] = hidden
        found = self.mtp.read({0: tokens}, {0: start})[0]
        self.drafted = found["mtp.norm.out"][-1:]
        return found

    def draft(self, fed: dict) -> dict[str, np.ndarray]:
        """MTP's values for a draft: from the model's own state after catching up, or from the draft before."""
        n = len(fed["before"])
        if fed["drafts"]:
            return self.predict(fed["tokens"][-1:], self.drafted, n - 1 + fed["drafts"])
        self.mtp.forget(0, self.own_rows)
        if self.own_rows < n - 1:
            lacks = slice(self.own_rows, n - 1)
            self.predict(fed["before"][self.own_rows + 1 :], self.hidden[lacks], self.own_rows)
        self.own_rows = n
        return self.predict(fed["tokens"], self.hidden[n - 1 : n], n - 1)

    def take_back(self, kept: list[int]) -> dict[str, np.ndarray]:
        """All tokens of the last pass but those that are kept."""
        length, saved = self.saved
        self.main.restore(0, saved)
        if kept[length:]:
            self.main.read({0: kept[length:]}, {0: length})
        self.hidden = self.hidden[: len(kept)]
        self.own_rows = min(self.own_rows, len(kept) - 1)
        return self.main.states(0)


parser = argparse.ArgumentParser()
for option in ("--model", "--like", "--trace", "--source", "--gguf"):
    parser.add_argument(option, type=Path, required=True)
args = parser.parse_args()
fields = json.loads((args.model / "config.json").read_bytes())
check(fields)
llama_cpp.llama_backend_init()
silence = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silence, None)
file = args.gguf / f"{args.model.name}.gguf"
if not file.is_file():
    to_gguf(args.model, args.source, file)
like = read_trace(args.like)
about = {"producer": f"llama-cpp-python {llama_cpp.__version__}", "dtype": "float32", "folder": args.model}
engine = Engine(file, fields)
found = {step: engine.step(fed) for step, fed in like.tokens.items() if not NOT_HERE & fed.keys()}
write_trace(args.trace, found, like.tokens, **about)
