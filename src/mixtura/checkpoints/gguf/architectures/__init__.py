"""The supported architectures of llama.cpp, and the architecture of each HF family.

HF stands for Hugging Face.
"""

import difflib
from collections.abc import Mapping

from mixtura.checkpoints.gguf.architectures.architecture import (
    EMBEDDING,
    HEAD,
    HF_EMBEDDING,
    Architecture,
    is_drafting,
)
from mixtura.checkpoints.gguf.architectures.dbrx import Dbrx
from mixtura.checkpoints.gguf.architectures.deepseek2 import Deepseek2
from mixtura.checkpoints.gguf.architectures.ernie import Ernie45Moe
from mixtura.checkpoints.gguf.architectures.gpt_oss import GptOss
from mixtura.checkpoints.gguf.architectures.granite import GraniteMoe
from mixtura.checkpoints.gguf.architectures.hunyuan import HunyuanMoe
from mixtura.checkpoints.gguf.architectures.llama import (
    Llama,
    Olmoe,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
)
from mixtura.checkpoints.gguf.architectures.sigmoid_router import Dots1, Glm4Moe, MiniMaxM2
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.errors import ConfigError

ARCHITECTURES: Mapping[str, Architecture] = {
    one.name: one
    for one in (
        Llama(),
        Qwen2(),
        Qwen3(),
        Olmoe(),
        Qwen2Moe(),
        Qwen3Moe(),
        Deepseek2(),
        Dbrx(),
        GraniteMoe(),
        Ernie45Moe(),
        GptOss(),
        Glm4Moe(),
        Dots1(),
        MiniMaxM2(),
        HunyuanMoe(),
    )
}
OF_FAMILY: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "olmoe": "olmoe",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "kimi_k2": "deepseek2",
    "glm4_moe_lite": "deepseek2",
    "sarvam_mla": "deepseek2",
    "glm4_moe": "glm4moe",
    "dots1": "dots1",
    "minimax_m2": "minimax-m2",
    "hunyuan_v1_moe": "hunyuan-moe",
    "dbrx": "dbrx",
    "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoe",
    "ernie4_5_moe": "ernie4_5-moe",
    "gpt_oss": "gpt-oss",
}
"""maps HF's `model_type` to the name of the architecture that the model is written as"""


def architecture_of(metadata: Metadata) -> Architecture:
    """The architecture of a GGUF file. Raises CheckpointError if it is not supported."""
    name = metadata.architecture
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.5)
    hint = f"the nearest that is read is {near[0]!r}, of" if near else "these are read:"
    raise metadata.error("general.architecture", f"{name!r}; {hint} {', '.join(ARCHITECTURES)}")


def architecture_for(model_type: str) -> Architecture:
    """The architecture to write an HF family as. Raises ConfigError if the family has none."""
    if model_type in OF_FAMILY:
        return ARCHITECTURES[OF_FAMILY[model_type]]
    raise ConfigError(
        f"a {model_type} model is not written as GGUF; these families are: {', '.join(OF_FAMILY)}"
    )


__all__ = [
    "ARCHITECTURES",
    "EMBEDDING",
    "HEAD",
    "HF_EMBEDDING",
    "OF_FAMILY",
    "Architecture",
    "architecture_for",
    "architecture_of",
    "is_drafting",
]
