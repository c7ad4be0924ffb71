"""Text shown token by token is the whole text, and no character is shown by halves."""

from hypothesis import example, given
from hypothesis import strategies as st

from mixtura.tokenizers import ByteTokenizer, SubwordTokenizer, Tokenizer


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_a_character_is_shown_when_it_is_whole() -> None:
    # "é" is 195 169; 256 ends a document and is no text; 240 begins a character of four bytes.
    pieces = streamed(ByteTokenizer(), [97, 195, 169, 256, 98, 240])
    assert pieces == ["a", "", "é", "", "b", "", "\ufffd"]


def test_bytes_that_are_no_character_are_shown_with_the_next_one() -> None:
    assert streamed(ByteTokenizer(), [255, 255, 97]) == ["", "", "\ufffd\ufffda", ""]


def test_a_space_between_words_is_kept_by_tokenizers_that_drop_the_first(
    sentencepiece_json: str,
) -> None:
    # "▁the" is a token, and a text does not begin with its space.
    tokenizer = SubwordTokenizer(sentencepiece_json)
    assert streamed(tokenizer, tokenizer.encode("the the")) == ["the", " the", ""]


@given(tokens=st.lists(st.integers(0, 256)))
@example(tokens=[0xF0, 0x9F, 0x99, 0x82, 0xE2, 0x28, 0xA1, 0xC3])
@example(tokens=[0xEF, 0xBF, 0xBD, 0xEF, 0xBF])
def test_any_bytes_streamed_are_the_bytes_decoded(tokens: list[int]) -> None:
    assert "".join(streamed(ByteTokenizer(), tokens)) == ByteTokenizer().decode(tokens)


@given(data=st.data())
def test_any_subwords_streamed_are_the_subwords_decoded(
    bpe: SubwordTokenizer, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(0, bpe.vocabulary - 1)))
    assert "".join(streamed(bpe, tokens)) == bpe.decode(tokens)


@given(text=st.text(st.characters(exclude_characters="\ufffd\u2581", exclude_categories=["Cs"])))
@example(text="  the 🙂 the  ")
def test_no_half_character_is_shown(
    bpe: SubwordTokenizer, sentencepiece_json: str, text: str
) -> None:
    for tokenizer in (ByteTokenizer(), bpe, SubwordTokenizer(sentencepiece_json)):
        pieces = streamed(tokenizer, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert pieces[-1] == ""
