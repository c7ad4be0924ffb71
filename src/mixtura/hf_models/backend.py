"""`register`: Mixtura's experts as an implementation that transformers' models can be asked for."""

import importlib.metadata

from torch.torch_version import TorchVersion

from mixtura.errors import ConfigError

NAME = "mixtura"
OLDEST = "5.7"
"""the first transformers whose experts interface others may add to"""


def register() -> None:
    """Add `experts_implementation="mixtura"` to transformers; a second call changes nothing.

    And "mixtura-8bit" and "mixtura-4bit", which pack the experts of a model when they are first
    used, for inference on a CPU.

    Raises ConfigError where transformers is absent, or older than 5.7.
    """
    remedy = f"pip install 'mixtura[hf]' brings {OLDEST} or newer"
    try:
        found = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"the experts backend needs the package 'transformers': {remedy}"
        ) from None
    if TorchVersion(found) < OLDEST:
        raise ConfigError(
            f"transformers=={found} has no experts interface that others may add to: {remedy}"
        )
    from transformers.integrations.finegrained_fp8 import FP8ExpertsInterface
    from transformers.integrations.moe import ExpertsInterface

    from mixtura.hf_models.experts import experts_forward
    from mixtura.hf_models.packed_experts import NAMES, forward_of

    forwards = {NAME: experts_forward, **{name: forward_of(bits) for name, bits in NAMES.items()}}
    for name, forward in forwards.items():
        ExpertsInterface.register(name, forward)
        # FP8 experts look here; ours then refuses them by name.
        FP8ExpertsInterface.register(name, forward)
