"""Configs that check themselves: unknown keys, overrides, files."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from mixtura.config import Config, read_yaml, with_overrides
from mixtura.errors import ConfigError, MixturaError


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = Field(gt=0)


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = 1.0
    corners: Literal["round", "sharp"] = "sharp"


class Inner(Config):
    learning_rate: float = 1e-3
    steps: int = 10


class Outer(Config):
    name: str
    train: Inner = Inner()
    maybe: Inner | None = None
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Square()
    shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...] = ()


def refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        Outer.parse(tree, "recipe.yaml")
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("recipe.yaml: ")
    return message


@pytest.mark.parametrize(
    ("tree", "where", "hint"),
    [
        ({"name": "a", "trian": {}}, "'trian'", "did you mean 'train'?"),
        (
            {"name": "a", "train": {"learning_rat": 1}},
            "'train.learning_rat'",
            "did you mean 'learning_rate'?",
        ),
        ({"name": "a", "maybe": {"step": 1}}, "'maybe.step'", "did you mean 'steps'?"),
        (
            {"name": "a", "shape": {"kind": "circle", "radius": 1, "radios": 2}},
            "radios'",
            "did you mean 'radius'?",
        ),
        (
            {"name": "a", "shapes": [{"kind": "square"}, {"kind": "square", "sid": 2}]},
            "sid'",
            "did you mean 'side'?",
        ),
        # Nothing is near: all keys of that place, and of that place alone.
        ({"name": "a", "train": {"zzz": 1}}, "'train.zzz'", "known keys: learning_rate, steps"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tree: dict[str, Any], where: str, hint: str
) -> None:
    message = refusal(tree)
    assert "unknown key" in message
    assert where in message
    assert message.endswith(hint)


def test_a_key_of_another_kind_is_not_suggested() -> None:
    # `radius` is the circle's; to suggest it to a square would repeat the mistake.
    message = refusal({"name": "a", "shape": {"kind": "square", "radius": 1}})
    assert "radius'" in message
    assert message.endswith("known keys: corners, kind, side")


def test_a_misspelt_required_key_is_called_unknown_not_missing() -> None:
    assert refusal({"nam": "a"}).endswith("unknown key 'nam'; did you mean 'name'?")


def test_a_missing_key_is_named() -> None:
    assert refusal({}).endswith("missing key 'name'")
    message = refusal({"name": "a", "shape": {"kind": "circle"}})
    assert "missing key" in message
    assert "radius" in message


def test_a_bad_value_names_its_place_its_bound_and_itself() -> None:
    message = refusal({"name": "a", "train": {"steps": "many"}})
    assert "train.steps" in message
    assert "valid integer" in message
    assert "'many'" in message
    message = refusal({"name": "a", "shape": {"kind": "circle", "radius": -2}})
    # The place as a user sets it: `shape.radius`, and not `shape.circle.radius`.
    assert "recipe.yaml: shape.radius: " in message
    assert "greater than 0" in message
    assert "-2" in message


def test_an_unknown_kind_names_the_known_ones() -> None:
    message = refusal({"name": "a", "shape": {"kind": "cube"}})
    assert "'cube'" in message
    assert "'circle', 'square'" in message


def test_a_config_is_frozen() -> None:
    config = Outer.parse({"name": "a"})
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "b"


def test_a_config_error_is_a_users_error() -> None:
    assert issubclass(ConfigError, MixturaError)
    assert issubclass(MixturaError, ValueError)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        # YAML 1.1 takes 3e-4 for a string; a person means a number.
        ("train.lr=3e-4", 3e-4),
        ("train.lr=0.5", 0.5),
        ("train.lr=7", 7),
        ("train.lr=true", True),
        ("train.lr=null", None),
        ("train.lr=[1, 2]", [1, 2]),
        ("train.lr={a: 1}", {"a": 1}),
        ("train.lr=cosine", "cosine"),
        ("train.lr=a=b", "a=b"),
        ("train.lr=", None),
    ],
)
def test_an_override_is_read_as_yaml(override: str, value: Any) -> None:
    found = with_overrides({}, [override])["train"]["lr"]
    assert found == value
    assert type(found) is type(value)


def test_overrides_leave_the_rest_and_the_original_alone() -> None:
    tree = {"train": {"lr": 1, "steps": 2}, "name": "a"}
    changed = with_overrides(tree, ["train.lr=3", "train.lr=4", "new.deep.key=5"])
    assert changed == {"train": {"lr": 4, "steps": 2}, "name": "a", "new": {"deep": {"key": 5}}}
    assert tree == {"train": {"lr": 1, "steps": 2}, "name": "a"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("name.first=3", "'name' is a value, not a section"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_a_bad_override_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_overrides({"name": "a"}, [override])


def test_read_yaml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train:\n  lr: 0.5\nname: été\n", encoding="utf-8")
    assert read_yaml(path) == {"train": {"lr": 0.5}, "name": "été"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "not valid YAML"),
        (b"- 1\n- 2\n", "expected a mapping"),
        (b"", "expected a mapping"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        read_yaml(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_absent_file_is_named_beside_the_recipes_of_mixtura(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*one of lstm-moe, stdlib-bpe"):
        read_yaml(tmp_path / "absent.yaml")


def test_read_yaml_takes_a_name_for_mixturas_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = Path(__file__).parents[1] / "recipes"
    monkeypatch.chdir(tmp_path)
    assert read_yaml(Path("stdlib-bytes")) == read_yaml(recipes / "stdlib-bytes.yaml")
    # A file of that name goes first, and a name is not looked for in other folders.
    (tmp_path / "stdlib-bytes").write_text("name: mine\n", encoding="utf-8")
    assert read_yaml(Path("stdlib-bytes")) == {"name": "mine"}
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "lstm-moe")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_numbers_beyond_what_torch_holds_are_refused() -> None:
    class Numbers(Config):
        count: int = 0
        size: float = 0.0

    assert Numbers.parse({"count": 2**63 - 1}).count == 2**63 - 1
    with pytest.raises(ConfigError, match="count=9223372036854775808 must lie within 64 bits"):
        Numbers.parse({"count": 2**63})
    for size in (float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"size: .*finite number"):
            Numbers.parse({"size": size})
