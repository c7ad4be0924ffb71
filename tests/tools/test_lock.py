"""The lock against pyproject.toml: everything that make and CI install, at one version each."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("lock")


def required(lock: Any) -> list[Requirement]:
    named = [
        *lock.project()["build-system"]["requires"],
        *lock.direct(),
        *lock.project()["dependency-groups"]["tools"],
        "pip",
        # scikit-build-core asks for these where the machine has none.
        "cmake",
        "ninja",
    ]
    return [Requirement(line) for line in named]


def test_lock_holds_each_requirement_within_its_range(lock: Any) -> None:
    pins = lock.pins(lock.LOCK)
    outside = {
        str(requirement): pins.get(canonicalize_name(requirement.name))
        for requirement in required(lock)
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    }
    assert not outside, "renew the lock: make lock"


def test_lock_has_one_version_of_a_package_and_no_address(lock: Any) -> None:
    text = lock.LOCK.read_text(encoding="utf-8")
    names = re.findall(r"^([\w.-]+)==", text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert "://" not in text
    # Each build of PyTorch brings its own.
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]
