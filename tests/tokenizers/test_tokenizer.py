"""Each tokenizer gives text back, counts its bytes, and survives being saved."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixtura.config import read_yaml
from mixtura.data import DataConfig
from mixtura.errors import ConfigError, DataError
from mixtura.tokenizers import (
    BpeConfig,
    ByteTokenizer,
    FileConfig,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
)
from mixtura.tokenizers.tokenizer_library import read_again
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers


@pytest.fixture(scope="session", params=["bytes", "bpe", "sentencepiece"])
def tokenizer(
    request: pytest.FixtureRequest, bpe: SubwordTokenizer, sentencepiece_json: str
) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    return bpe if request.param == "bpe" else SubwordTokenizer(sentencepiece_json)


def test_bytes_are_tokens() -> None:
    # "é" is 0xC3 0xA9, that is 195 and 169.
    assert ByteTokenizer().encode("aé") == [97, 195, 169]
    assert ByteTokenizer().decode([97, 256, 195, 169, 256]) == "aé"
    assert ByteTokenizer().decode([195, 97]) == "\ufffda"
    assert (ByteTokenizer().vocabulary, ByteTokenizer().end_of_document) == (257, 256)


@given(text=st.text())
@example(text="")
@example(text=" leading and trailing \n\n")
@example(text="the<|endoftext|></s><s>the")
@example(text="\x00\ufffd\ufeff\U0010ffff")
@example(text="e\u0301 \u2581 the")
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    # A "▁" in the text is what the older kind takes for a space.
    if isinstance(tokenizer, SubwordTokenizer) and tokenizer.end_of_document == 2:
        text = text.replace("\u2581", "")
    tokens = tokenizer.encode(text)
    assert tokenizer.decode([*tokens, tokenizer.end_of_document]) == text
    assert tokenizer.byte_length(tokens) == len(text.encode())
    assert tokenizer.end_of_document not in tokens
    assert all(0 <= token < tokenizer.vocabulary for token in tokens)


@given(texts=st.lists(st.text(), max_size=5))
def test_a_batch_is_the_same_tokens_with_their_bytes(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert encoded.ids_N.tolist() == tokenizer.encode(text)
        assert encoded.bytes_N.min(initial=0) >= 0
        assert encoded.bytes_N.sum() == (len(text.encode()) if len(encoded.ids_N) else 0)


def test_the_bytes_of_a_split_character_are_its_first_tokens(bpe: SubwordTokenizer) -> None:
    # "the" was merged, "木" is three byte tokens: 3 + (3 + 0 + 0) + 3 bytes.
    (encoded,) = bpe.encode_batch(["the木the"])
    assert encoded.bytes_N.tolist() == [3, 3, 0, 0, 3]


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    text = "the cat sat on the café 木"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.vocabulary, loaded.end_of_document) == (
        tokenizer.vocabulary,
        tokenizer.end_of_document,
    )


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"character 2 of the text, '\\udcff', is half a surrogate"):
        tokenizer.encode("ab\udcff")


@pytest.mark.parametrize("token", [-1, 100_000])
def test_a_token_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(
        DataError, match=rf"token {token} must lie in 0\.\.{tokenizer.vocabulary - 1}"
    ):
        tokenizer.decode([0, token])


def test_training_again_gives_the_same_tokenizer(bpe: SubwordTokenizer, tmp_path: Path) -> None:
    text = ["the cat sat on the mat, the hat and the bat " * 4, "naïve café über, naïve café " * 4]
    bpe.save(tmp_path / "one")
    BpeConfig(kind="bpe", vocabulary=300).build(lambda _: text).save(tmp_path / "two")
    one, two = (tmp_path / name / "tokenizer.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_little_text_yields_a_smaller_vocabulary() -> None:
    # 256 bytes, the end, and "ab", "abab", ... : nothing else is to be merged.
    tokenizer = BpeConfig(kind="bpe", vocabulary=4096).build(lambda _: ["ab ab"] * 3)
    assert 257 < tokenizer.vocabulary < 270


def write_tokenizer(folder: Path, backend: Backend) -> str:
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    return str(folder)


def word_level(*words: str) -> Backend:
    backend = Backend(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def test_a_hugging_face_folder_is_enough(bpe: SubwordTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    (tmp_path / "tokenizer.mixtura.json").unlink()
    assert load_tokenizer(tmp_path).encode("the mat") == bpe.encode("the mat")


def test_the_end_may_be_named(sentencepiece_json: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(sentencepiece_json, encoding="utf-8")
    config = FileConfig(kind="file", path=str(path), end_of_document="<s>")
    assert config.load().end_of_document == 1
    missing = FileConfig(kind="file", path=str(path), end_of_document="<end>")
    with pytest.raises(DataError, match=r"has no '<end>' to end a document"):
        missing.load()


def test_cutting_and_padding_in_the_file_are_switched_off(
    bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    bpe.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    write_tokenizer(tmp_path, backend)
    text = "a long text that is more than two tokens"
    assert load_tokenizer(tmp_path).encode(text) == bpe.encode(text)


def test_a_canonical_form_is_allowed_and_its_bytes_are_the_texts(
    bpe: SubwordTokenizer, tmp_path: Path
) -> None:
    bpe.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.normalizer = normalizers.NFC()
    write_tokenizer(tmp_path, backend)
    tokenizer = load_tokenizer(tmp_path)
    # "e" and a combining accent are 1 + 2 bytes; they come back as one character of 2.
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"
    assert tokenizer.encode_batch(["e\u0301"])[0].bytes_N.sum() == 3


def test_a_tokenizer_that_loses_text_is_refused(bpe: SubwordTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.normalizer = normalizers.Lowercase()
    lowering = FileConfig(kind="file", path=write_tokenizer(tmp_path, backend))
    with pytest.raises(DataError, match="does not give text back"):
        lowering.load()
    words = FileConfig(kind="file", path=write_tokenizer(tmp_path, word_level("?", "</s>")))
    with pytest.raises(DataError, match="does not give text back"):
        words.load()


@pytest.mark.parametrize("letter", ["c", "\\u0063"])
def test_a_mark_of_later_pieces_is_refused(
    bpe: SubwordTokenizer, tmp_path: Path, letter: str
) -> None:
    """The library would end the process, at a merge whose second part begins with such a byte."""
    tree = json.loads(bpe.to_json())
    tree["model"]["continuing_subword_prefix"] = "("
    text = json.dumps(tree).replace("continuing_sub", f"{letter}ontinuing_sub")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    said = r"tokenizer\.json: its model has continuing_subword_prefix='\('"
    with pytest.raises(DataError, match=said):
        load_tokenizer(tmp_path)
    tree["model"]["continuing_subword_prefix"] = ""
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    load_tokenizer(tmp_path)


def test_a_panic_while_it_is_read_again_is_one_line(
    bpe: SubwordTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found where two names had one number, so that what the library wrote is not whole."""
    tree = json.loads(bpe.to_json())
    tree["model"]["continuing_subword_prefix"] = "x" * 100
    with pytest.raises(DataError, match=r"^the/file: the tokenizer cannot be used"):
        read_again(json.dumps(tree), "the/file")
    assert capfd.readouterr().err == ""


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, word_level("?", "word"))
    with pytest.raises(DataError, match=r"has none of <\|endoftext\|>.*end_of_document"):
        FileConfig(kind="file", path=path).load()


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=f"{tmp_path}: not a tokenizer.json"):
        FileConfig(kind="file", path=str(tmp_path)).load()


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing/tokenizer\.json|missing: no such file"):
        FileConfig(kind="file", path=str(tmp_path / "missing")).load()
    with pytest.raises(DataError, match=r"no tokenizer; expected tokenizer\.mixtura\.json, "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "words"}', '{"kind": 3}'])
def test_a_damaged_description_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.mixtura.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.mixtura\.json: "):
        load_tokenizer(tmp_path)


def test_a_small_vocabulary_for_bpe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.vocabulary.*257.*given 256"):
        DataConfig.parse({"tokenizer": {"kind": "bpe", "vocabulary": 256}})


def test_a_recipe_names_source_and_tokenizer(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: {kind: text, paths: [a, b]}\ntokenizer: {kind: bpe}\nheldout: 0.1\n")
    config = DataConfig.parse(read_yaml(recipe))
    assert config.tokenizer == BpeConfig(kind="bpe", vocabulary=4096, sample_mb=64)
    assert DataConfig.parse(json.loads(config.model_dump_json())) == config
