"""The domains inside Python source, against texts taken apart by hand and against `ast`."""

import ast
import sysconfig
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.data import StdlibSource, python_spans
from mixtura.data.documents import Document


def pieces(text: str) -> list[tuple[str, str]]:
    """The text cut at its spans, each piece with its domain."""
    spans = python_spans(text)
    ends = [*(span.start for span in spans[1:]), len(text)]
    return [(span.domain, text[span.start : end]) for span, end in zip(spans, ends, strict=True)]


def test_a_module_is_taken_apart() -> None:
    assert pieces('"""Doc."""\nx = 1  # one\n# two\n\n# three\ny = "text"\n') == [
        ("docstring", '"""Doc."""'),
        ("code", "\nx = 1  "),
        # What lies between two comments is theirs, if it is blank.
        ("comment", "# one\n# two\n\n# three"),
        ("code", '\ny = "text"\n'),
    ]


def test_a_statement_of_strings_alone_is_a_docstring() -> None:
    text = 'class A:\n    "First"  " part"\n    size: int\n    """Of it."""\n    def f(self): 1\n'
    assert [text for domain, text in pieces(text) if domain == "docstring"] == [
        '"First"  " part"',
        '"""Of it."""',
    ]


def test_offsets_are_characters_and_not_bytes() -> None:
    assert pieces('é = "木"; ü = """\n🙂\n"""  # ñ') == [
        ("code", 'é = "木"; ü = '),
        ("string", '"""\n🙂\n"""'),
        ("code", "  "),
        ("comment", "# ñ"),
    ]


def test_a_string_of_three_lines_is_a_string_and_of_two_is_code() -> None:
    assert pieces('x = """1\n2"""\n') == [("code", 'x = """1\n2"""\n')]
    assert pieces('x = """1\n2\n3"""') == [("code", "x = "), ("string", '"""1\n2\n3"""')]


def test_an_f_string_is_code() -> None:
    assert pieces('x = f"""1\n{2}\n3"""\nf"alone {x}"\n') == [
        ("code", 'x = f"""1\n{2}\n3"""\nf"alone {x}"\n')
    ]


def test_brackets_of_many_short_literals_are_a_table() -> None:
    # 40 literals of 3 digits with ", " between: 40 * 3 + 39 * 2 + 2 brackets = 200 characters.
    table = f"[{', '.join(str(number) for number in range(100, 140))}]"
    assert len(table) == 200
    assert pieces(f"x = f({table})") == [("code", "x = f"), ("table", f"({table})")]
    assert pieces(f"x = {table[:-6]}]") == [("code", f"x = {table[:-6]}]")]
    # A comment inside belongs to the table.
    inside = table.replace("[", "[  # why\n")
    assert pieces(f"x = {inside}\n") == [("code", "x = "), ("table", inside), ("code", "\n")]


def test_brackets_of_long_literals_are_a_string() -> None:
    # 16 literals of 42 characters each, quotes included.
    text = "(" + "\n".join(f'"{"words and " * 4}"' for _ in range(16)) + ")"
    assert pieces(f"x = {text}") == [("code", "x = "), ("string", text)]


def test_brackets_of_names_are_code() -> None:
    # 20 numbers and 20 names: 4 * 20 > 20.
    call = f"f({', '.join(f'name_{n}={n}' for n in range(20))})"
    assert len(call) > 200
    assert pieces(call) == [("code", call)]


@pytest.mark.parametrize(
    "text",
    [
        "x = (1,\n",
        '"""never closed\n',
        "if x:\n        a\n    b\n",
        "what? is this\n",
        "",
        "x = 1",
    ],
)
def test_what_does_not_parse_or_holds_nothing_is_code(text: str) -> None:
    assert pieces(text) == [("code", text)]


@given(st.text(alphabet="ab1 \n\t\r\f#'\"\\()[]{}:,=f木\ufeff") | st.text())
def test_spans_cover_any_text_once(text: str) -> None:
    spans = python_spans(text)
    assert spans[0].start == 0
    assert all(
        before.start < after.start and before.domain != after.domain
        for before, after in pairwise(spans)
    )
    assert spans[-1].start <= len(text)
    assert {span.domain for span in spans} <= {"code", "comment", "docstring", "string", "table"}


def docstrings(text: str) -> Iterator[str]:
    """By `ast`: the first string of each module, class and function that has a block."""
    raw = text.encode()
    # `ast` counts rows from 1, and columns in bytes.
    rows = [0, 0, *accumulate(len(row) + 1 for row in raw.split(b"\n"))]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            in_line = not isinstance(node, ast.Module) and first and first.lineno == node.lineno
            if ast.get_docstring(node) is not None and not in_line:
                assert isinstance(first, ast.Expr)
                assert first.end_lineno is not None
                assert first.end_col_offset is not None
                start = rows[first.lineno] + first.col_offset
                end = rows[first.end_lineno] + first.end_col_offset
                yield raw[start:end].decode()


def check_against_ast(documents: list[Document]) -> int:
    found = 0
    for document in documents:
        by_us = [text for domain, text in pieces(document.text) if domain == "docstring"]
        for docstring in docstrings(document.text):
            found += 1
            assert docstring in by_us, document.name
    return found


def test_docstrings_of_some_modules_are_those_of_ast() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = ["textwrap.py", "heapq.py", "json/decoder.py"]
    documents = [Document(name, "code", (root / name).read_text("utf-8")) for name in names]
    assert check_against_ast(documents) > 20


@pytest.mark.slow
def test_docstrings_of_the_whole_library_are_those_of_ast() -> None:
    documents = [item for item in StdlibSource().read() if isinstance(item, Document)]
    assert check_against_ast(documents) > 5000
