"""The MoE rows of tables 7 and 8 of Shazeer et al. 2017 (arXiv 1701.06538), by name.

`table_7["MoE-4096-h"].config(vocabulary=32_000, context=64)` is the config of a model. The config
counts the model's parameters without building the model, so it can count 137 billion. A model that
is small enough can be built and trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtura.models.historic.lstm_moe import LstmMoEConfig

# Each token uses this number of experts in all language models of the paper.
ACTIVE_EXPERTS = 4


@dataclass(frozen=True, slots=True)
class Published:
    """A row of a table: the settings of a model, and the numbers that the paper prints for it."""

    operations: str
    """ops/timestep, in millions, as printed"""
    parameters: str
    """parameters without embedding and softmax, in millions, as printed"""
    num_experts: int = 0
    groups: int = 0
    """the number of groups of a hierarchical gate; 0 for a flat gate"""
    width: int = 512
    expert_width: int = 1024
    units: int | None = None
    """units of each LSTM, projected to `width`; None means `width`"""
    hidden: tuple[int, ...] = ()
    """hidden widths of the dense network that stands in place of an MoE if `num_experts` is 0"""
    dropout: float = 0.1

    def config(self, vocabulary: int, context: int) -> LstmMoEConfig:
        """The model's config. The paper's counts do not depend on `vocabulary`."""
        return LstmMoEConfig.parse(
            {
                "width": self.width,
                "units": self.units,
                "vocabulary": vocabulary,
                "context": context,
                "moe": self._moe() if self.num_experts else None,
                "hidden": self.hidden,
                "dropout": self.dropout,
            }
        )

    def _moe(self) -> dict[str, Any]:
        return {
            "num_experts": self.num_experts,
            "top_k": ACTIVE_EXPERTS,
            "expert_width": self.expert_width,
            "router": two_levels(self.groups) if self.groups else {"kind": "noisy_topk"},
        }


def two_levels(groups: int) -> dict[str, Any]:
    """The paper's hierarchical gate, which chooses two groups and two experts in each."""
    noisy = {"kind": "noisy_topk"}
    return {
        "kind": "hierarchical",
        "groups": groups,
        "outer_top_k": 2,
        "outer": noisy,
        "inner": noisy,
    }


# Models trained on 1 billion words. Low-budget models have 16 groups, one for each GPU. The paper
# states no number of groups for MoE-34M and MoE-143M. With one for each of their 32 GPUs, the
# parameters are as many as printed.
table_7: Mapping[str, Published] = {
    "MoE-1-Wide": Published("8.4", "8.4", hidden=(4096,)),
    "MoE-1-Deep": Published("8.4", "8.4", hidden=(1024, 1024, 1024, 1024)),
    "MoE-4": Published("8.4", "8.4", 4),
    "MoE-32": Published("8.4", "37.8", 32),
    "MoE-256": Published("8.6", "272.9", 256),
    "MoE-256-h": Published("8.4", "272.9", 256, groups=16),
    "MoE-1024-h": Published("8.5", "1079.0", 1024, groups=16, dropout=0.2),
    "MoE-4096-h": Published("8.9", "4303.4", 4096, groups=16, dropout=0.2),
    "MoE-34M": Published(
        "33.8", "4313.9", 1024, groups=32, width=1024, expert_width=2048, dropout=0.3
    ),
    "MoE-143M": Published(
        "142.7", "4371.1", 256, groups=32, width=1024, expert_width=8192, units=4096, dropout=0.4
    ),
}

# Models trained once over 100 billion words; the paper states no dropout for them.
table_8: Mapping[str, Published] = {
    "MoE-32": Published("8.4", "37.8", 32, dropout=0.0),
    "MoE-256-h": Published("8.4", "272.9", 256, groups=32, dropout=0.0),
    "MoE-1024-h": Published("8.5", "1079.0", 1024, groups=32, dropout=0.0),
    "MoE-4096-h": Published("8.6", "4303.4", 4096, groups=64, dropout=0.0),
    "MoE-16384-h": Published("8.8", "17201.0", 16384, groups=128, dropout=0.0),
    "MoE-65536-h": Published("9.2", "68791.0", 65536, groups=256, dropout=0.0),
    "MoE-131072-h": Published("9.7", "137577.6", 131072, groups=256, dropout=0.0),
}
