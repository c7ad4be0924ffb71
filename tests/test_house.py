"""The house rules that no linter knows: sizes, names, and imports that stay light."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import median

import pytest

import mixtura

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "mixtura"
FILES = sorted(PACKAGE.rglob("*.py"))

WITHOUT_TORCH = [
    *("config", "errors", "files", "json_reader", "posix", "regular_files", "terminal_text"),
    *("yaml_reader", "shapes", "trace", "plan", "cli"),
]

# Words with a plainer one: people for things, and words for which the field has its own.
PLAINER = {
    **dict.fromkeys(("nobody", "no one", "somebody", "someone"), "none, or a passive"),
    **dict.fromkeys(("whoever", "anybody", "anyone"), "the caller, the user, or a passive"),
    **dict.fromkeys(("told", "tell", "tells"), "logged, stated, given"),
    **dict.fromkeys(("ask", "asks", "asked", "asking"), "requested, needed"),
    **dict.fromkeys(("want", "wants", "wanted"), "options, needed"),
    **dict.fromkeys(("know", "knows"), "has, reads, supports"),
    **dict.fromkeys(("wish", "wished", "wishes", "wished for"), "chosen"),
    **dict.fromkeys(("believe", "believes", "believed", "beliefs"), "the router's probability"),
    **dict.fromkeys(("lost", "declined", "left over", "left overs"), "dropped, unused, abandoned"),
    **dict.fromkeys(("drawn", "draw", "draws", "drawing"), "sampled, projected, random"),
    **dict.fromkeys(("turned", "turning"), "rotated, changed"),
    "sight": "attention mask",
    "script": "chat format",
    "scripts": "chat formats",
}
# Rooms whose words are still to be made plain. This list only shrinks.
ROOMS_TO_DO: set[str] = set()
# Honest uses, by file and word.
HONEST = {
    ("checkpoints/gguf/file_writer.py", "tell"): "a method of files",
    ("cli/prompts.py", "drawn"): "a progress bar is drawn",
    ("engine/next_token.py", "draw"): "a function of the compiled module",
    ("insight/page.py", "script"): "HTML's element",
    ("insight/page.py", "scripts"): "JavaScript files",
    ("runs/journal.py", "tell"): "a method of files",
    ("shapes/attention.py", "turning"): "`turning_dim` is a key of recipes",
    ("tokenizers/byte_level_parts.py", "scripts"): "writing systems",
    ("tokenizers/subwords.py", "scripts"): "writing systems",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Each node of the package's syntax, with the place where it stands."""
    return [
        (f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}", node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def length(function: Function) -> int:
    """Lines from `def` to the end; a docstring is free, so that shortening it gains nothing."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def lengths() -> dict[str, int]:
    return {
        f"{place} {node.name}": length(node)
        for place, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_a_docstring_does_not_count_towards_a_function() -> None:
    # def, a docstring of two lines, return: 4 - 2 = 2.
    function = ast.parse('def f():\n    """One.\n    Two."""\n    return 1\n').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 2


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(PACKAGE)): lines_of(path) for path in FILES}
    long = {name: n for name, n in sizes.items() if n > 500 and not name.startswith("kernels")}
    assert not long
    # An __init__.py only lists names, and would flatter the median.
    assert median(n for name, n in sizes.items() if not name.endswith("__init__.py")) <= 150


def test_files_of_tests_are_short_too() -> None:
    tests = [path for path in (REPOSITORY / "tests").rglob("*.py") if lines_of(path) > 500]
    assert not tests


def test_functions_are_short() -> None:
    assert not {name: n for name, n in lengths().items() if n > 80}
    assert median(lengths().values()) <= 12


def test_a_helper_lives_beside_its_user() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    found = [path for path in FILES if drawers & {path.stem, *path.relative_to(PACKAGE).parts}]
    assert not found


def test_benchmarks_alone_measure_limits() -> None:
    named = re.compile(r"kernels\._limits|kernels import .*\b_limits\b")
    users = [path for path in FILES if named.search(path.read_text(encoding="utf-8"))]
    assert not [path for path in users if not path.is_relative_to(PACKAGE / "bench")]


def calls_of(names: set[str]) -> set[str]:
    """The package's files that call something of these names."""
    return {
        place.partition(":")[0].removeprefix("src/mixtura/")
        for place, node in nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in names
    }


def test_block_order_stands_once() -> None:
    # The file that calls a block's norms fixes the order in which a block computes.
    norms = {"attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm"}
    assert calls_of(norms) == {"models/decoder.py"}


def files_that_call(*functions: str) -> set[str]:
    """The package's files that call a function by one of these names, as `State.empty`."""
    return {
        place.partition(":")[0].removeprefix("src/mixtura/")
        for place, node in nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in functions
    }


def test_sequence_state_stands_once() -> None:
    # One module allocates keys and values, and only plans and readers call it.
    assert files_that_call("LayerKV.empty", "KVLayer", "LatentLayer") == {"models/state.py"}
    assert files_that_call("State.empty") == {"engine/cache_plan.py", "engine/readers.py"}
    # One op takes a layer's cache as tensors, and makes a `LayerKV` of them again.
    assert files_that_call("LayerKV") == {"kernels/cached_attention/cpu.py"}


def test_generation_loop_stands_once() -> None:
    # One file samples tokens from logits, for all uses.
    sampling = files_importing("mixtura.engine.next_token", "next_tokens")
    assert sampling == {"engine/scheduler.py"}
    # The same file adds tokens to sequences. The files below begin sequences.
    assert files_that_call("one.take") == {"engine/scheduler.py"}
    assert files_that_call("Sequence.of") == {
        "engine/continuous_batch.py",
        "engine/generate.py",
        "engine/many_prompts.py",
    }


def files_importing(module: str, name: str) -> set[str]:
    """The package's files that import a name from a module."""
    return {
        place.partition(":")[0].removeprefix("src/mixtura/")
        for place, node in nodes()
        if isinstance(node, ast.ImportFrom)
        and node.module == module
        and any(alias.name == name for alias in node.names)
    }


def test_telling_what_a_path_is_stands_once() -> None:
    # The files that name a kind are looked for by one module; others read or write them by name.
    assert files_importing("mixtura.runs.file_names", "RECIPE") == {
        "checkpoints/inspection.py",
        "checkpoints/model_kind.py",
        "runs/folder.py",
    }
    assert files_importing("mixtura.packed.folder", "FILE") == {
        f"checkpoints/{name}.py"
        for name in (
            *("inspection", "model_kind", "open_model"),
            *("packed_conversion", "weight_readers"),
        )
    }


def test_the_reader_of_a_runs_folder_stands_once() -> None:
    # A RunFolder gives places and checkpoints to all others; inspection starts without torch.
    assert files_that_call("Checkpoints") == {"checkpoints/inspection.py", "runs/folder.py"}
    readers = files_importing("mixtura.runs.checkpoint", "read_tensors")
    assert readers == {"checkpoints/loaded_run.py"}


def test_nothing_probes_with_hasattr() -> None:
    assert not [
        place
        for place, node in nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "hasattr"
    ]


def test_no_function_passes_unnamed_keywords_on() -> None:
    assert not [
        place
        for place, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and node.args.kwarg is not None
    ]


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert not [path for path in FILES if later.search(path.read_text(encoding="utf-8"))]


def test_import_mixtura_leaves_torch_out() -> None:
    assert not torch_after("import mixtura; mixtura.__version__; dir(mixtura)")


@pytest.mark.parametrize(
    "name",
    # A package that a later version adds is held to this as soon as it exists.
    [n for n in WITHOUT_TORCH if (PACKAGE / n).is_dir() or (PACKAGE / f"{n}.py").is_file()],
)
def test_light_parts_leave_torch_out(name: str) -> None:
    assert not torch_after(f"import mixtura.{name}")


def torch_after(code: str) -> bool:
    """Whether a fresh interpreter holds torch once it ran `code`."""
    command = [sys.executable, "-c", f"import sys; {code}; print('torch' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1] == "True"


def test_torch_is_seen_where_it_is_imported() -> None:
    assert torch_after("import torch")


@pytest.mark.parametrize("name", mixtura.__all__)
def test_each_exported_name_is_there(name: str) -> None:
    assert getattr(mixtura, name) is not None


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'MoEs'"):
        mixtura.MoEs  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mixtura.__version__ == project["version"]


@pytest.mark.parametrize(
    "name", ["checkpoints.gguf", "data", "packed", "runs", "tokenizers", "train"]
)
def test_names_offered_at_first_use_are_there_and_no_modules(name: str) -> None:
    # A module of the same name would stand in its place once it is imported.
    package = import_module(f"mixtura.{name}")
    folder = PACKAGE.joinpath(*name.split("."))
    assert not {path.stem for path in folder.iterdir()} & set(package.__all__)
    assert all(getattr(package, offered) is not None for offered in package.__all__)


def words_of(text: str) -> str:
    """Lower-case words with single spaces; `left_over`, `LeftOver` and left-over are two words."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return " ".join(re.findall(r"[^\W_]+", spaced.lower()))


def written(source: str) -> Iterator[tuple[int, str]]:
    """Comments, names and docstrings, attributes' included, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.NAME}:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.lineno, str(node.value.value)


def hard_words(source: str) -> Iterator[tuple[int, str]]:
    """Words of PLAINER, each with the line of its comment, name or docstring."""
    for line, text in written(source):
        words = f" {words_of(text)} "
        yield from ((line, hard) for hard in PLAINER if f" {hard} " in words)


def test_hard_words_are_found_in_comments_names_and_docstrings() -> None:
    source = '''"""Whoever reads."""
left_over = wantedRows(toldApart="nobody")  # not drawn
half = 1
"""of those asked for"""
'''
    found = [(1, "whoever"), (2, "left over"), (2, "wanted"), (2, "told"), (2, "drawn")]
    # "nobody" is a value, and values are quotations.
    assert sorted(hard_words(source)) == sorted([*found, (4, "asked")])


def test_words_are_plain() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0] for path in FILES}
    assert rooms >= ROOMS_TO_DO
    problems: list[str] = []
    honest: set[tuple[str, str]] = set()
    for path in FILES:
        name = path.relative_to(PACKAGE)
        if name.parts[0] in ROOMS_TO_DO:
            continue
        for line, hard in [*hard_words(path.read_text(encoding="utf-8")), *hard_words(path.stem)]:
            if (name.as_posix(), hard) in HONEST:
                honest.add((name.as_posix(), hard))
            else:
                problems.append(f"{name}:{line}: {hard!r}; better: {PLAINER[hard]}")
    assert not problems
    assert honest == HONEST.keys(), "an exception that is no longer needed"


def test_the_glossary_names_files_that_exist() -> None:
    page = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`", page)
    assert named
    assert not [name for name in named if not (PACKAGE / name).is_file()]
