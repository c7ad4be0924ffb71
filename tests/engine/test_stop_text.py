"""Text that ends an answer, wherever the pieces are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.engine.stop_text import StopText


def shown(stops: str | list[str], pieces: list[str]) -> tuple[str, bool]:
    """What came through, and whether a stop was met."""
    filter_ = StopText([stops] if isinstance(stops, str) else stops, opening=True)
    text = ""
    for piece in pieces:
        text += filter_.push(piece)
        if filter_.met:
            return text, True
    return text + filter_.rest(), False


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\n\nb"], ("a", True)),
        (["a", "\n", "\n", "b"], ("a", True)),
        (["a\n", "\nb"], ("a", True)),
        (["a\n", "b\n", "c"], ("a\nb\nc", False)),
        (["a\n"], ("a\n", False)),
        # An answer may open with a blank line.
        (["\n\n", "a", "\n\nb"], ("\n\na", True)),
        (["\n\na\n\nb"], ("\n\na", True)),
        (["\n \n"], ("\n \n", False)),
        ([], ("", False)),
    ],
)
def test_a_blank_line_ends_an_answer(pieces: list[str], expected: tuple[str, bool]) -> None:
    assert shown("\n\n", pieces) == expected


def test_what_may_be_the_beginning_is_held_back() -> None:
    stop = StopText(["END"])
    # "EN" may become "END"; with "X" it cannot any more.
    assert [stop.push(piece) for piece in ["one E", "N", "X", "E"]] == ["one ", "", "ENX", ""]
    assert stop.rest() == "E"


def test_a_stop_that_overlaps_itself_is_found() -> None:
    # "aab" after "a": the beginning "aa" that was held back moves on by one.
    assert shown("aab", ["xa", "a", "a", "b", "y"]) == ("xa", True)


def test_no_stop_hands_everything_on() -> None:
    assert shown("", ["a", "\n\n", "b"]) == ("a\n\nb", False)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        # Both end at the same letter: the longer one goes.
        (["b", "ab"], ("x", True)),
        # "b" is whole before "abc" is.
        (["abc", "b"], ("xa", True)),
        (["z", "abd"], ("xabc", False)),
        # An empty one never appears.
        (["", "c"], ("xab", True)),
    ],
)
def test_of_several_the_first_that_is_whole_ends_it(
    stops: list[str], expected: tuple[str, bool]
) -> None:
    assert shown(stops, ["xabc"]) == shown(stops, list("xabc")) == expected


def test_white_space_at_the_beginning_is_passed_over_only_where_asked() -> None:
    stop = StopText(["\n"])
    assert (stop.push("\na"), stop.met) == ("", True)


@given(
    st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1)
)
def test_the_cut_of_the_pieces_does_not_matter_to_several(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    assert shown(stops, pieces) == shown(stops, list(whole)) == shown(stops, [whole])


@given(st.lists(st.text("ab\n", max_size=4)), st.text("ab\n", min_size=1, max_size=3))
def test_the_cut_of_the_pieces_does_not_matter(pieces: list[str], stop: str) -> None:
    whole = "".join(pieces)
    assert shown(stop, pieces) == shown(stop, list(whole)) == shown(stop, [whole])
