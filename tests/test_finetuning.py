"""Claim: PEFT, transformers' Trainer and accelerate train this model as they train their own; the recipes run."""

import re
import sys

import pytest
import torch
from conftest import ROOT, random_model, tokens

from qwen3_next import Qwen3NextForCausalLM, Qwen3NextTokenizer

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(ROOT))
from benchmarks import document  # noqa: E402

TARGETS = ["q_proj", "in_proj_qkvz", "up_proj"]
IDS = tokens(4, 24)


def trained(model: torch.nn.Module, steps: int = 5, lr: float = 5e-3, **options) -> list[float]:
    """Losses of some steps on the same batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_lora(tmp_path):
    """Catches an adapter that is not called, changes the base model, is not saved, or merges to another model."""
    base = random_model(torch.float32, mtp_num_hidden_layers=1)
    before = {name: p.clone() for name, p in base.named_parameters()}
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).train()
    losses = trained(model, output_hidden_states=True, return_dict=True)
    assert losses[-1] < losses[0] - 0.02
    model.eval()
    text = model.generate(IDS[:1], max_new_tokens=6, eos_token_id=None)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(random_model(torch.float32, mtp_num_hidden_layers=1), tmp_path / "adapter")
    logits = model(IDS).logits
    torch.testing.assert_close(again(IDS).logits, logits)
    assert torch.equal(again.generate(IDS[:1], max_new_tokens=6, eos_token_id=None), text)
    merged = again.merge_and_unload()
    assert isinstance(merged, Qwen3NextForCausalLM)
    assert (merged(IDS).logits - logits).abs().max() < 3e-3 * logits.std()  # float32, in another order
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        Qwen3NextForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, merged(IDS).logits
    )
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.split(".")[-2] in TARGETS for name in changed)
    with pytest.raises(ValueError, match="an adapter"):
        Qwen3NextForCausalLM.from_pretrained(tmp_path / "adapter")


def test_lora_with_gradient_checkpointing():
    """Catches adapters without gradients, because the frozen embeddings' output needs none."""
    config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(random_model(torch.float32), config).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    losses = trained(model)
    assert losses[-1] < losses[0]


def test_learned_prompts_are_refused_by_generate():
    """Catches a learned prompt that is trained, and then left out of the text without a word."""
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(random_model(torch.float32), config)
    assert model(IDS, labels=IDS).logits.shape[1] == IDS.shape[1] + 3
    with pytest.raises(ValueError, match="a learned prompt would have no effect"):
        model.generate(input_ids=IDS[:1], max_new_tokens=2)


def test_trainer(tiny, tmp_path):
    """Catches a Trainer that does not train, evaluate or checkpoint, and a folder that is not the trained model."""
    tokenizer = Qwen3NextTokenizer.from_pretrained(tiny)
    model = random_model(torch.float32, vocab_size=2048)
    data = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in tokens(4, 20)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        save_steps=2,
        gradient_checkpointing=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = transformers.Trainer(
        model, arguments, collator, train_dataset=data, eval_dataset=data, processing_class=tokenizer
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert model.is_gradient_checkpointing
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.05
    predicted = trainer.predict(data)
    assert predicted.predictions.shape == (4, 20, 2048)
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").exists()
    trainer.save_model(str(tmp_path / "trained"))
    model.config.save_pretrained(tmp_path / "trained")
    for _ in range(2):
        again = Qwen3NextForCausalLM.from_pretrained(tmp_path / "trained")
        assert again.dtype == torch.float32
        for name, p in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], p), name
        model.save_pretrained(tmp_path / "trained")
    assert Qwen3NextTokenizer.from_pretrained(tmp_path / "trained").get_vocab() == tokenizer.get_vocab()


def test_accelerate():
    """Catches a model that prepare wraps and that then fails, a loss in half precision, and fields that get lost."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # that of a Trainer before
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    plain = random_model(torch.float32)
    exact = plain(IDS, labels=IDS).loss.item()
    model, optimizer = accelerator.prepare(plain.train(), torch.optim.AdamW(plain.parameters(), lr=1e-3))
    out = model(IDS, labels=IDS)
    assert abs(out.loss.item() - exact) < 0.1
    assert out.loss.item() != exact
    assert (out.loss.dtype, out["logits"].dtype) == (torch.float32, torch.bfloat16)
    assert out.last_hidden_state is not None
    accelerator.backward(out.loss)
    optimizer.step()
    assert model(IDS, labels=IDS).loss.item() < out.loss.item()
    assert accelerator.unwrap_model(model) is plain


@pytest.mark.parametrize("place", [0, 1, 2], ids=["all weights", "LoRA", "Trainer"])
def test_the_recipes_run(place):
    """Catches a recipe in the document that does not run, learns nothing, or prints other lines than are shown."""
    text = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    program = document.programs(text)[place]
    shown = document.PROGRAM.findall(text)[place][1]
    printed = document.run(program)
    assert [line.split(":")[0] for line in printed.splitlines() if ":" in line] == [
        line.split(":")[0] for line in shown.splitlines() if ":" in line
    ]
    for output in (printed, shown):
        before, after = re.findall(r"loss before: (\d+\.\d+).*?after.*?: +(\d+\.\d+)", output, re.DOTALL)[0]
        assert float(after) < (0.5 if place < 2 else 0.95) * float(before)
    if place == 2:
        assert "read again: True" in printed


def test_documents_are_renewed():
    """Catches an output written below another program, and text that gets lost."""
    text = "a\n\n```python data\nX = 1\n```\n\n```python\nprint(X)\n```\n\n```text\nold\n```\n\nb\n"
    assert document.programs(text) == ["X = 1\n\nprint(X)\n"]
    assert document.run(document.programs(text)[0]) == "1\n"
    assert document.renewed(text, ["1\n"]) == text.replace("old", "1")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        document.run("1 / 0")
