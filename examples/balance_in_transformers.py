"""Balance a collapsed Mixtral with transformers' Trainer: a tiny model on random data, in seconds.

R rows of S tokens.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from mixtura.hf_models import attach_balancing


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, ids_RS: Tensor) -> None:
        self.ids_RS = ids_RS

    def __len__(self) -> int:
        return len(self.ids_RS)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids_RS[row], "labels": self.ids_RS[row]}


torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
)
model: Any = MixtralForCausalLM(config)
with torch.no_grad():
    # Dimension 0 is large in all tokens, and raises the logits of two experts in each layer. So all
    # tokens go to these experts at first.
    model.model.embed_tokens.weight[:, 0] += 0.5
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight[0] = 8.0
        layer.mlp.gate.weight[:2, 0] = 0.5

with tempfile.TemporaryDirectory() as folder, attach_balancing(model, balance=0.1) as balancing:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            max_steps=60,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Rows(torch.randint(64, (64, 16))),
    )
    # Adds moe/balance_loss, moe/layer_00/max_over_mean and other values to each line of Trainer's
    # log.
    balancing.log_to(trainer)
    trainer.train()
    for line in balancing.report():
        print(line)
