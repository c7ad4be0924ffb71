"""dots.llm1: Qwen3's attention with DeepSeek-V3's experts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.llama import Qwen3
from mixtura.shapes.families.shared_experts import SigmoidExperts

_NOT_OF_DOTS = ("use_sliding_window", "head_dim")


class Dots1(SigmoidExperts, Qwen3):
    """Each head's queries and keys are normed; layers from `max_window_layers` on have a window."""

    model_type = "dots1"
    architecture = "Dots1ForCausalLM"
    # Published configs of this family have noaux_tc in `scoring_func`; other families have it in
    # `topk_method`.
    scoring_names = ("sigmoid", "noaux_tc")
    defaults = MappingProxyType(
        {
            **{key: value for key, value in Qwen3.defaults.items() if key not in _NOT_OF_DOTS},
            **SigmoidExperts.defaults,
            "num_key_value_heads": 32,
            "max_window_layers": 62,
            "n_shared_experts": None,
            "norm_topk_prob": False,
        }
    )

    def read_windows(self, keys: Keys) -> Tree | None:
        """A stated window is used, whatever `use_sliding_window` says."""
        return super().read_windows(keys.with_value("use_sliding_window", value=True))

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        written = super().write_windows(local, layers)
        del written["use_sliding_window"]
        return written
