"""Balancing over micro-batches and optimizer steps: loops, accelerate, Trainer, LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tests.hf_models.small_moes import (
    SHAPE,
    batch,
    checkpointing,
    collapse,
    gradients,
    mixtral,
    qwen,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Trainer, TrainingArguments

from mixtura.errors import ConfigError
from mixtura.hf_models.balancing import attach_balancing


def test_accumulation_in_a_loop_equals_one_batch() -> None:
    # Sequences of different lengths: scope `sequence` averages over them, wherever they are.
    whole = batch(padded=True)
    given = {**whole, "labels": whole["input_ids"]}
    found = []
    for parts in (1, 4):
        model = mixtral()
        with attach_balancing(model, balance=1.0, z_loss=0.0):
            for part in range(parts):
                size = 4 // parts
                piece = {key: x[part * size : (part + 1) * size] for key, x in given.items()}
                (model(**piece).loss / parts).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_accumulation_in_accelerate_equals_one_batch() -> None:
    # accelerate divides each loss by 4, and lets every fourth step through.
    whole = batch()
    found = []
    for parts in (1, 4):
        model = mixtral()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
        with attach_balancing(model, balance=1.0) as balancing:
            ours, optimizer = accelerator.prepare(
                model, torch.optim.SGD(model.parameters(), lr=0.1)
            )
            for part in range(2 * parts):
                first = part % parts * (4 // parts)
                piece = {key: x[first : first + 4 // parts] for key, x in whole.items()}
                with accelerator.accumulate(ours):
                    accelerator.backward(ours(**piece).loss)
                    optimizer.step()
                    optimizer.zero_grad()
            reports = balancing.report()
        # Two optimizer steps of 4 * 8 tokens with 2 experts each.
        assert [(report.steps, sum(report.load)) for report in reports] == [(2, 128), (2, 128)]
        found.append(model.state_dict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, count: int, length: int = 8) -> None:
        generator = torch.Generator().manual_seed(2)
        self.ids = torch.randint(3, 64, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "labels": self.ids[row]}


def trainer(model: Any, folder: Path, rows: int, **keys: Any) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model=model, args=TrainingArguments(**{**arguments, **keys}), train_dataset=Rows(rows)
    )


@pytest.mark.parametrize("checkpoints", [False, True])
def test_accumulation_in_trainer_equals_one_batch(tmp_path: Path, checkpoints: bool) -> None:
    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        model = mixtral()
        with attach_balancing(model, balance=1.0) as balancing:
            training = trainer(
                model,
                tmp_path,
                rows=8,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                **checkpointing(checkpoints),
            )
            balancing.log_to(training)
            training.train()
            loads = [layer.load for layer in balancing.report()]
        (line,) = [line for line in training.state.log_history if "loss" in line]
        assert line["moe/layer_01/max_over_mean"] >= 1
        found.append((model.state_dict(), loads, line["loss"], line["moe/balance_loss"]))
        assert sum(loads[0]) == 8 * 8 * 2
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_transformers_own_loss_counts_each_micro_batch_in_full(tmp_path: Path) -> None:
    # What docs/balancing-in-transformers.md says of 5.23: with its weight of 1 and k = 2, the loss
    # of near balance adds 2 in one batch, and 4 * 2 in four.
    logged = []
    for size, accumulation in ((8, 1), (2, 4)):
        training = trainer(
            mixtral(output_router_logits=True, router_aux_loss_coef=1.0),
            tmp_path,
            rows=8,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        training.train()
        logged += [line["loss"] for line in training.state.log_history if "loss" in line]
    assert logged[1] - logged[0] == pytest.approx(3 * 2, abs=0.1)


def test_biases_move_once_per_optimizer_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **{**SHAPE, "num_key_value_heads": 2},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    model: Any = DeepseekV3ForCausalLM(config).train()
    bias_E = model.model.layers[1].mlp.gate.e_score_correction_bias
    with attach_balancing(model, balance=0.0, bias_rate=0.5) as balancing:
        trainer(
            model,
            tmp_path,
            rows=8,
            max_steps=2,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
        ).train()
        (report,) = balancing.report()
    assert (report.layer, report.steps) == (1, 2)
    # Two steps of 0.5 up or down, or none where the load is the mean: multiples of 0.5 within 1.
    assert set((bias_E * 2).tolist()) <= {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert bias_E.any()
    # Another model's optimizer moves nothing here.
    with attach_balancing(model, balance=0.0, bias_rate=0.5):
        before = bias_E.clone()
        model(**batch()).loss.backward()
        other = nn.Linear(1, 1)
        torch.optim.SGD(other.parameters()).step()
        assert bias_E.equal(before)
        torch.optim.SGD(model.parameters(), lr=0.0).step()
        assert not bias_E.equal(before)
    model.to(torch.bfloat16)
    model.model.layers[1].mlp.gate.e_score_correction_bias = bias_E.bfloat16()
    with pytest.raises(ConfigError, match=r"in torch.bfloat16, where steps of 0.001 vanish"):
        attach_balancing(model, bias_rate=0.001)


# Routers are not linear layers, so LoRA reaches them by one of these two.
ROUTERS: dict[str, dict[str, Any]] = {
    "modules_to_save": {"modules_to_save": ["gate"]},
    "target_parameters": {"target_parameters": ["mlp.gate.weight"]},
}


def busiest_with_lora(folder: Path, way: str, balance: float) -> list[list[float]]:
    """For each layer, the busiest expert over the mean in step 1, and in tens of steps from it."""
    model = qwen()
    # 2 of 8 experts have it all: 8 / 2 = 4 times the mean.
    collapse(model, [[0, 1], [2, 3]], strength=1.0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **ROUTERS[way])
    tuned: Any = get_peft_model(model, config)
    with attach_balancing(tuned, balance=balance) as balancing:
        training = trainer(
            tuned,
            folder,
            rows=16,
            max_steps=40,
            per_device_train_batch_size=16,
            learning_rate=0.02,
            lr_scheduler_type="linear",
            optim="adamw_torch",
            logging_steps=10,
            logging_first_step=True,
        )
        balancing.log_to(training)
        training.train()
    lines = [line for line in training.state.log_history if "loss" in line]
    return [[line[f"moe/layer_0{layer}/max_over_mean"] for line in lines] for layer in (0, 1)]


# PEFT 0.21 asks for it by the name of before.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("way", ROUTERS)
def test_lora_balances_a_collapsed_model(tmp_path: Path, way: str) -> None:
    for busiest in busiest_with_lora(tmp_path, way, balance=0.5):
        assert busiest[0] == 4.0
        assert busiest[-1] < 1.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_without_a_balance_loss_a_collapsed_model_stays_so(tmp_path: Path) -> None:
    for busiest in busiest_with_lora(tmp_path, "modules_to_save", balance=0.0):
        assert busiest[-1] > 2.5
