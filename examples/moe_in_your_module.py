"""An MoE in place of a feed-forward block in your own model: 20 steps on random data, in seconds.

B sequences, S positions, D width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixtura import MoE, MoEConfig, MoEOutput
from mixtura.moe import end_step
from mixtura.moe.load import load


class Output(NamedTuple):
    logits_BSV: Tensor
    moe: MoEOutput


class TinyModel(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.RMSNorm(width)
        self.moe = MoE(width, MoEConfig(num_experts=8, top_k=2, expert_width=2 * width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens_BS: Tensor) -> Output:
        x_BSD = self.embedding(tokens_BS)
        moe = self.moe(self.norm(x_BSD))
        return Output(self.head(x_BSD + moe.hidden), moe)


torch.manual_seed(0)
model = TinyModel(vocabulary=64, width=32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
tokens_BS = torch.randint(64, (4, 33))

for step in range(1, 21):
    logits_BSV, moe = model(tokens_BS[:, :-1])
    task_loss = nn.functional.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())
    # moe.loss is the sum of the layer's balancing losses, each times its weight.
    (task_loss + moe.loss).backward()
    optimizer.step()
    optimizer.zero_grad()
    # Updates choosing biases, if the router has them, and starts a new count of load.
    end_step(model)
    if step % 5 == 0:
        losses = ", ".join(f"{name} {loss.item():.4f}" for name, loss in moe.losses.items())
        print(f"step {step}: loss {task_loss.item():.3f}, {losses}")
        print(f"  tokens that chose each expert: {load(moe.routing).tolist()}")
