"""A run's environment: versions, threads, device, and each MoE layer's kind of matrix products."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from mixtura.moe import moe_layers
from mixtura.train.trainer import Trainer


def versions() -> dict[str, str]:
    return {
        "mixtura": version("mixtura"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def environment(trainer: Trainer) -> dict[str, Any]:
    """The content of a run's environment.json."""
    device = trainer.device
    dtype = getattr(torch, trainer.config.dtype)
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": _name(device),
        "dtype": trainer.config.dtype,
        "moe_layers": [
            {
                "layer": number,
                "backend": layer.experts.backend,
                "products": layer.experts.products_for(dtype, device),
            }
            for number, layer in zip(trainer.moe_layers, moe_layers(trainer.decoder), strict=True)
        ],
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two environments, each as the text `key: old -> new`.

    Each difference may change the last bits of a loss.
    """
    return [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
