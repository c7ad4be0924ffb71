"""Balancing in plain transformers training. T tokens, E experts, K experts per token."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.data import Dataset
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mixtura.errors import ConfigError
from mixtura.interop.transformers.balancing import attach_balancing
from mixtura.interop.transformers.observe import observe_routing
from mixtura.moe.balance import balance_loss
from mixtura.moe.routing import Routing

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "use_cache": False,
}


def mixtral(**keys: Any) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        **{
            **SHAPE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            **keys,
        }
    )
    return MixtralForCausalLM(config).train()


def qwen(**keys: Any) -> Any:
    torch.manual_seed(0)
    own = {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8, "norm_topk_prob": True}
    config = Qwen3MoeConfig(**{**SHAPE, **own, "num_experts_per_tok": 2, **keys})
    return Qwen3MoeForCausalLM(config).train()


def batch(sequences: int = 4, *, padded: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (sequences, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 5:] = 0
        mask[2, :3] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def hooks(model: nn.Module) -> int:
    counted = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return counted + len(_global_optimizer_post_hooks)


def collapse(model: Any, favourites: list[list[int]], strength: float = 8.0) -> None:
    """Each layer's router sends every token to its favourites, with logits of about `strength`.

    The others' are about 0. Not quite: equal logits would not tell a softmax from a sigmoid.
    """
    for layer, chosen in zip(model.model.layers, favourites, strict=True):
        layer.post_attention_layernorm = _WithOne(layer.post_attention_layernorm)
        with torch.no_grad():
            layer.mlp.gate.weight.mul_(1e-3)
            layer.mlp.gate.weight[chosen, 0] = strength


class _WithOne(nn.Module):
    """A norm whose first output is always 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return torch.cat([torch.ones_like(normed[..., :1]), normed[..., 1:]], -1)


def test_two_collapsed_layers_are_told_where_pooling_sees_balance() -> None:
    # 4 experts, top-2. Layer 0 gives everything to 0 and 1, layer 1 to 2 and 3, with logits of 8
    # and 0: P = e^8 / (2 e^8 + 2) = 0.49983 for each favourite, and 0.00017 for the others.
    # Ours, by layer: f = 1/2, 1/2, 0, 0 and E * sum f P = 4 * 0.49983 = 1.99933.
    # Pooled over both layers: f = 1/2 of the tokens for each (it sums to k = 2), P = 1/4 each, so
    # 4 * 4 * 1/2 * 1/4 = 2.0: exactly k, what transformers gives to perfect balance.
    model = mixtral(output_router_logits=True)
    collapse(model, [[0, 1], [2, 3]])
    losses: dict[int, float] = {}

    def hear(layer: int, routing: Routing) -> None:
        losses[layer] = balance_loss(routing).item()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with observe_routing(model, hear), attach_balancing(model, balance=1.0) as balancing:
        outputs = [model(**batch()) for _ in range(3)]
        torch.stack([output.loss for output in outputs]).sum().backward()
        optimizer.step()
    pooled = load_balancing_loss_func(outputs[0].router_logits, num_experts=4, top_k=2)
    assert isinstance(pooled, Tensor)
    assert pooled.item() == pytest.approx(2.0, abs=1e-5)
    assert losses == {0: pytest.approx(1.99933, abs=1e-5), 1: pytest.approx(1.99933, abs=1e-5)}
    assert balancing.take_log()["moe/balance_loss"] == pytest.approx(1.99933, abs=1e-5)
    # 3 micro-batches of 4 * 8 tokens, each with two experts.
    first, second = balancing.report()
    assert first.load == (96, 96, 0, 0)
    assert second.load == (0, 0, 96, 96)
    assert first.steps == second.steps == 1
    assert first.collapsed
    assert second.collapsed
    assert (first.starving, second.starving) == ((2, 3), (0, 1))
    assert first.max_over_mean == second.max_over_mean == 2.0
    assert str(second) == (
        "layer 1: busiest over mean 2.00; collapsed; starving experts 0, 1, over 1 steps"
    )


def loss_of(model: Any, given: dict[str, Tensor]) -> float:
    return model(**given).loss.item()


def test_the_models_loss_gains_the_mean_over_layers() -> None:
    model = mixtral()
    plain = loss_of(model, batch())
    seen: list[float] = []
    with observe_routing(model, lambda _, routing: seen.append(balance_loss(routing).item())):
        model(**batch())
    with attach_balancing(model, balance=0.5):
        balanced = loss_of(model, batch())
    assert balanced - plain == pytest.approx(0.5 * (seen[0] + seen[1]) / 2, abs=1e-5)
    assert loss_of(model, batch()) == plain


def test_transformers_scale_is_k_times_ours() -> None:
    model = mixtral()
    plain = loss_of(model, batch())
    with attach_balancing(model, balance=0.5):
        ours = loss_of(model, batch()) - plain
    with attach_balancing(model, balance=0.5, scale="transformers"):
        theirs = loss_of(model, batch()) - plain
    assert theirs == pytest.approx(2 * ours, rel=1e-4)


def test_z_loss_is_added() -> None:
    model = mixtral()
    plain = loss_of(model, batch())
    with attach_balancing(model, balance=0.0, z_loss=0.25) as balancing:
        added = loss_of(model, batch()) - plain
        assert added == pytest.approx(0.25 * balancing.take_log()["moe/z_loss"], rel=1e-4)
    assert added > 0


def test_the_models_own_loss_is_not_counted_too() -> None:
    model = mixtral(output_router_logits=True, router_aux_loss_coef=0.5)
    output = model(**batch())
    own = 0.5 * output.aux_loss.item()
    task = output.loss.item() - own
    with attach_balancing(model, balance=0.01) as balancing:
        silent = model(**batch())
        ours = 0.01 * balancing.take_log()["moe/balance_loss"]
        # It is still told, and weighs nothing.
        assert silent.aux_loss.item() == pytest.approx(2 * own)
        assert silent.loss.item() == pytest.approx(task + ours, abs=1e-5)
        # What a checkpoint would hold is the user's.
        assert model.config.router_aux_loss_coef == model.router_aux_loss_coef == 0.5
    with attach_balancing(model, balance=0.01, keep_own_loss=True):
        assert loss_of(model, batch()) == pytest.approx(task + own + ours, abs=1e-5)


def test_evaluation_gains_nothing() -> None:
    model = mixtral().eval()
    plain = loss_of(model, batch())
    with attach_balancing(model, balance=1.0) as balancing:
        assert loss_of(model, batch()) == plain
        model.train()
        with torch.no_grad():
            assert loss_of(model, batch()) == plain
        assert balancing.report() == ()


def test_detaching_removes_every_hook() -> None:
    model = mixtral()
    before = hooks(model)
    balancing = attach_balancing(model)
    assert hooks(model) > before
    balancing.detach()
    assert hooks(model) == before


def test_a_refused_argument_leaves_no_hook() -> None:
    model = mixtral()
    before = hooks(model)
    with pytest.raises(ConfigError, match=r"layer 0: router model.layers.0.mlp.gate has no bias"):
        attach_balancing(model, bias_rate=0.001)
    with pytest.raises(ConfigError, match=r"attach_balancing: balance: .* greater than or equal"):
        attach_balancing(model, balance=-1.0)
    assert hooks(model) == before


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
def test_padding_changes_nothing(scope: Any) -> None:
    # The same two sequences, alone and with padding behind them.
    model = mixtral()
    short = batch(2)
    padded = {
        "input_ids": nn.functional.pad(short["input_ids"], (0, 5), value=7),
        "attention_mask": nn.functional.pad(short["attention_mask"], (0, 5)),
        "labels": nn.functional.pad(short["labels"], (0, 5), value=-100),
    }
    found = []
    for given in (short, padded):
        with attach_balancing(model, balance=1.0, z_loss=0.1, scope=scope) as balancing:
            found.append(loss_of(model, given))
            balancing.end_step()
            # 2 * 8 tokens with 2 experts each.
            assert [sum(layer.load) for layer in balancing.report()] == [32, 32]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("scope", ["sequence", "global_batch"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(use_reentrant: bool, scope: Any) -> None:
    found = []
    for checkpointed in (False, True):
        model = mixtral()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        with attach_balancing(model, balance=1.0, z_loss=0.1, scope=scope) as balancing:
            losses = []
            for given in (batch(padded=True), batch(2)):
                loss = model(**given).loss
                # As a gradient scaler, or accumulation, would.
                (3 * loss).backward()
                losses.append(loss.item())
            balancing.end_step()
            loads = [layer.load for layer in balancing.report()]
        found.append((losses, gradients(model), loads))
    torch.testing.assert_close(found[1], found[0])
    # Without the balance loss the router's gradient is another, so the above shows something.
    model = mixtral()
    (3 * model(**batch(padded=True)).loss).backward()
    gate = "model.layers.0.mlp.gate.weight"
    assert not torch.allclose(gradients(model)[gate], found[0][1][gate], atol=1e-3)


def test_one_backward_through_two_reentrant_passes() -> None:
    found = []
    for together in (True, False):
        model = mixtral()
        model.activation_checkpointing_enable({"use_reentrant": True})
        with attach_balancing(model, balance=1.0):
            first, second = model(**batch(padded=True)).loss, model(**batch(2)).loss
            if together:
                (first + 2 * second).backward()
            else:
                first.backward()
                (2 * second).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0])


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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulation_in_trainer_equals_one_batch(tmp_path: Path, checkpointing: bool) -> None:
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
                activation_checkpointing=checkpointing,
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


def test_a_copied_model_is_not_ours() -> None:
    model = mixtral()
    with attach_balancing(model, balance=1.0) as balancing:
        twin = copy.deepcopy(model)
        assert loss_of(twin, batch()) < loss_of(model, batch())
        balancing.end_step()
        assert sum(balancing.report()[0].load) == 4 * 8 * 2


def test_a_model_called_around_balancing_is_told() -> None:
    model = mixtral()
    with (
        attach_balancing(model),
        pytest.raises(ConfigError, match="called around the MixtralForCausalLM"),
    ):
        model.model(input_ids=batch()["input_ids"])


def test_a_loss_of_ones_own_takes_the_balance_loss() -> None:
    model = mixtral()
    given = {key: x for key, x in batch().items() if key != "labels"}
    with attach_balancing(model, balance=1.0) as balancing:
        model(**given)
        balancing.take_loss().backward()
        assert gradients(model)["model.layers.1.mlp.gate.weight"].any()
        with pytest.raises(ConfigError, match="taken before"):
            balancing.take_loss()
        model(**given)
        with pytest.raises(ConfigError, match="had no labels"):
            model(**given)


def test_a_tuple_as_output_gains_the_loss() -> None:
    model = mixtral()
    plain = model(**batch(), return_dict=False)[0].item()
    with attach_balancing(model, balance=1.0):
        assert model(**batch(), return_dict=False)[0].item() > plain + 0.9
