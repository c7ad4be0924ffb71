"""Every experts class of transformers that uses its experts interface, found by inspection."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig

_DECORATED = re.compile(r"^@use_experts_implementation.*\nclass (\w+)", re.MULTILINE)

# What the classes read of their configs, small; an activation stays the family's own.
_SIZES = {
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "moe_latent_size": None,
}
_WIDTHS = ["hidden_size", "moe_hidden_size"]
_EXPERT_WIDTHS = ["intermediate_size", "moe_intermediate_size"]

# Their configs answer for one layer at a time.
_FROM_A_LAYER = {"Dots3NoteExperts"}


def decorated() -> list[str]:
    """`module.Class` of each decorated class, read from transformers' sources without an import."""
    models = Path(transformers.__file__).parent / "models"
    return [
        f"{path.parent.name}.{path.stem}.{name}"
        for path in sorted(models.glob("*/modeling_*.py"))
        for name in _DECORATED.findall(path.read_text(encoding="utf-8"))
    ]


def carrying_the_interface(module: str) -> set[str]:
    """Classes of one modelling module whose forward is the interface's, however they came by it."""
    loaded = importlib.import_module(f"transformers.models.{module}")
    return {
        name
        for name, found in inspect.getmembers(loaded, inspect.isclass)
        if issubclass(found, nn.Module)
        and found.__module__ == loaded.__name__
        and "use_experts_implementation" in found.forward.__code__.co_qualname
    }


def tiny(name: str, width: int, expert_width: int) -> Any:
    """The class with random weights, 6 experts, and all else as its family's config has it."""
    module, _, class_name = name.rpartition(".")
    loaded = importlib.import_module(f"transformers.models.{module}")
    built = getattr(loaded, class_name)
    config = _config(built)
    for key in (key for key in [*_SIZES, *_WIDTHS, *_EXPERT_WIDTHS] if key in _reads(built)):
        own = width if key in _WIDTHS else expert_width if key in _EXPERT_WIDTHS else _SIZES[key]
        # Some families have a list of widths, one for each kind of token.
        own_list = isinstance(getattr(config, key), list)
        setattr(config, key, [own] * 2 if own_list else own)
    if "intermediate_size" in inspect.signature(built).parameters:
        experts = built(config, expert_width)
    else:
        experts = built(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return experts


def _reads(built: type[nn.Module]) -> set[str]:
    """The attributes of the config that the constructor reads."""
    return set(re.findall(r"config\.(\w+)", inspect.getsource(inspect.unwrap(built.__init__))))


def _config(built: type[nn.Module]) -> PretrainedConfig:
    """A default config of the class's family that has all that the constructor reads."""
    needed = _reads(built)
    modelling = sys.modules[built.__module__]
    family = built.__module__.rpartition(".")[0]
    found = [
        of_module
        for path in sorted(Path(str(modelling.__file__)).parent.glob("configuration_*.py"))
        for of_module in vars(importlib.import_module(f"{family}.{path.stem}")).values()
        if inspect.isclass(of_module)
        and issubclass(of_module, PretrainedConfig)
        and of_module.__module__.startswith(family)
    ]
    for candidate in found:
        config = candidate()
        if built.__name__ in _FROM_A_LAYER:
            config = config.per_layer_config[-1]
        if all(getattr(config, name, needed) is not needed for name in needed):
            return config
    raise AssertionError(f"no config of {family} has {sorted(needed)}")
