"""Chooses the device of a run by the device's name in the recipe."""

import torch

from mixtura.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is the first GPU, or the CPU if there is no GPU.

    Raises ConfigError for a name that is not a device of this machine.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"train.device={name} is not a device; choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if has_gpu else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"train.device={name}: torch sees {count} GPUs here; set train.device=auto or cpu"
        )
    return device
