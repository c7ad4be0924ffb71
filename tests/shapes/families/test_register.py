"""A family of another package."""

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes.families import _REGISTERED as REGISTERED
from mixtura.shapes.families import FAMILIES, family_named, family_of, register_family
from mixtura.shapes.families.llama import Llama


class Lama(Llama):
    model_type = "lama"
    architecture = "LamaForCausalLM"


def test_register_family_lets_a_config_name_it() -> None:
    with pytest.raises(ConfigError, match="model_type='lama' is no family"):
        family_named("lama")
    register_family(Lama())
    try:
        assert "lama" in FAMILIES
        assert isinstance(family_of({"model_type": "lama"}), Lama)
        assert "lama" in list(FAMILIES)
        with pytest.raises(ValueError, match="model_type='lama' is registered already"):
            register_family(Lama())
    finally:
        REGISTERED.remove("lama")


def test_register_family_refuses_the_name_of_one_of_mixturas() -> None:
    with pytest.raises(ValueError, match="model_type='llama' is Mixtura's own; choose another"):
        register_family(Llama())
