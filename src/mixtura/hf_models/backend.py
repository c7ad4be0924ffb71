"""Registers Mixtura's experts as an implementation that models of transformers can select."""

import importlib.metadata

from torch.torch_version import TorchVersion

from mixtura.errors import ConfigError

NAME = "mixtura"
OLDEST = "5.7"
"""the first version of transformers whose experts interface accepts other implementations"""


def register() -> None:
    """Add `experts_implementation="mixtura"` to transformers; a second call changes nothing.

    "mixtura-8bit" and "mixtura-4bit" are added too. With them, each experts module of a model is
    packed at the module's first use, for inference on a CPU.

    Raises ConfigError if transformers is not installed, or is older than 5.7.
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
        # Models with FP8 experts look in an interface of their own. Mixtura's functions are added
        # there too, so that such experts are refused with an error of one line.
        FP8ExpertsInterface.register(name, forward)
