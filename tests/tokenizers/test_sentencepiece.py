"""SentencePiece's files give SentencePiece's own tokens and texts, on odd text too."""

import base64
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixtura.errors import DataError
from mixtura.tokenizers import CheckpointTokenizer, FileConfig, load_tokenizer
from mixtura.tokenizers.charsmap import Charsmap
from mixtura.tokenizers.sentencepiece_file import read_sentencepiece
from mixtura.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

spm = pytest.importorskip("sentencepiece", reason="the extra `dev` brings it")
Model = Callable[[str], bytes]
KINDS = ("llama", "gemma", "symbols", "unigram", "unigram with bytes", "folded")
ODD = (
    "",
    " ",
    "   ",
    "  leading and trailing  ",
    "a  b   c        d\t\te\n\n\nf\r\n \n",
    "def f(x):\n        return 'a' + x  # 123 45",
    "日本語　テスト 한국어 ภาษา עברית हिन्दी 각",
    "🙂👩\u200d👩\u200d👧 \u200d\u200b\ufeff",
    "e\u0301\u0301 \u00e9 \ufb01 \u00bd \uff21 \uff76\uff9e \u1100\u1161\u11a8",
    "\x00\x01\x7f\x85\xa0\ufffd\U0010ffff\u2028",
    "\u2581a \u2581\u2581 \u2581",
    "<s></s><unk><0x41><0xFF>[INST]<sep> <sep>x<start_of_turn>\n<end_of_turn>",
    textwrap.dedent.__doc__ or "",
)
LETTERS = st.sampled_from(
    [*"the1 '\t\n.,=é½木🙂\u3000\u2581ﬁ\uff41한\u0301\u200d\x00<s>", "  ", "</s>", "<sep>"]
)
TEXTS = st.lists(LETTERS, max_size=30).map("".join) | st.text(max_size=20)


@pytest.fixture(scope="session", params=KINDS)
def pair(
    request: pytest.FixtureRequest,
    sentencepiece_model: Model,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SentencePieceTokenizer, Any]:
    """Ours and SentencePiece's own, of one file."""
    folder = tmp_path_factory.mktemp("spm")
    return opened(folder, sentencepiece_model(request.param))


def opened(folder: Path, model: bytes, **files: Any) -> tuple[SentencePieceTokenizer, Any]:
    (folder / "tokenizer.model").write_bytes(model)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    ours = load_tokenizer(folder)
    assert isinstance(ours, SentencePieceTokenizer)
    return ours, spm.SentencePieceProcessor(model_proto=model)


@given(text=TEXTS)
@example(text="t>>>")
def test_tokens_and_text_are_sentencepieces(
    pair: tuple[SentencePieceTokenizer, Any], text: str
) -> None:
    same(*pair, text)


def test_odd_texts_are_sentencepieces(pair: tuple[SentencePieceTokenizer, Any]) -> None:
    for text in ODD:
        same(*pair, text)


def same(ours: SentencePieceTokenizer, theirs: Any, text: str) -> None:
    tokens = theirs.encode(text)
    assert ours.encode(text) == tokens or tied(theirs, ours.encode(text), tokens)
    # What is unknown has no text in ours, and "⁇" there.
    known = [token for token in tokens if token != theirs.unk_id()]
    assert ours.decode(known) == theirs.decode(known)


def tied(theirs: Any, one: list[int], other: list[int]) -> bool:
    """Whether two segmentations of one text score alike but for the rounding of sums.

    SentencePiece adds scores of unigrams in fp32, and the tokenizers library in fp64. Where two
    orders of the same pieces tie, as ">" and ">>" in ">>>", the last bit decides.
    """
    return sorted(one) == sorted(other) and theirs.decode(one) == theirs.decode(other)


def test_tied_is_the_same_pieces_in_another_order(pair: tuple[SentencePieceTokenizer, Any]) -> None:
    _, theirs = pair
    the, one = (theirs.encode(text) for text in ("the", "1"))
    assert tied(theirs, the, the)
    assert not tied(theirs, the, one)
    assert not tied(theirs, [*the, *one], [*one, *the])


@given(data=st.data())
def test_any_tokens_have_sentencepieces_text(
    pair: tuple[SentencePieceTokenizer, Any], data: st.DataObject
) -> None:
    ours, theirs = pair
    # Bytes, some of which make no characters, stand in front in each vocabulary.
    any_token = st.integers(0, theirs.vocab_size() - 1) | st.integers(4, 300)
    tokens = data.draw(st.lists(any_token, max_size=10))
    tokens = [token for token in tokens if token != theirs.unk_id()]
    text = ours.decode(tokens)
    assert text == theirs.decode(tokens)
    stream = ours.stream()
    assert "".join([*(stream.push(token) for token in tokens), stream.finish()]) == text


@given(first=TEXTS, second=TEXTS)
@example(first="a", second=" b")
@example(first="", second=" b")
def test_text_that_goes_on_has_no_space_set_before_it(
    llama: SentencePieceTokenizer, first: str, second: str
) -> None:
    first, second = (text.replace("\u2581", "") for text in (first, second))
    before = llama.encode(first)
    after = llama.encode(second, continues=True)
    assert llama.decode([*before, *after]) == (first or "") + (
        second if first else second[second.startswith(" ") :]
    )


@given(text=TEXTS)
def test_a_stream_keeps_the_space_of_a_text_that_goes_on(
    llama: SentencePieceTokenizer, text: str
) -> None:
    text = f" {text}".replace("\u2581", "")
    stream = llama.stream(after=[1, *llama.encode("The capital of France is")])
    tokens = llama.encode(text, continues=True)
    pieces = [*(stream.push(token) for token in tokens), stream.finish()]
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(texts=st.lists(TEXTS, max_size=4))
def test_a_batch_counts_the_bytes_of_each_token(
    llama: SentencePieceTokenizer, texts: list[str]
) -> None:
    for text, encoded in zip(texts, llama.encode_batch(texts), strict=True):
        assert encoded.ids_N.tolist() == llama.encode(text)
        assert encoded.bytes_N.min(initial=0) >= 0
        assert encoded.bytes_N.sum() == len(text.encode())


def test_the_space_in_front_is_no_byte_of_the_text(llama: SentencePieceTokenizer) -> None:
    (encoded,) = llama.encode_batch(["木 a"])
    texts = [llama.token_text(token) for token in encoded.ids_N.tolist()]
    # "▁" is set, and adds nothing; the three bytes of the letter are its first token's.
    if texts[1].startswith("<0x"):
        assert encoded.bytes_N.tolist()[:4] == [0, 3, 0, 0]
    else:
        assert encoded.bytes_N.tolist()[:2] in ([0, 3], [3, 2])


@pytest.fixture(scope="session")
def llama(
    sentencepiece_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> SentencePieceTokenizer:
    return opened(tmp_path_factory.mktemp("llama"), sentencepiece_model("llama"))[0]


def test_one_that_changes_text_trains_nothing(sentencepiece_model: Model, tmp_path: Path) -> None:
    ours, _ = opened(tmp_path, sentencepiece_model("folded"))
    assert ours.decode(ours.encode("  THE  ﬁne ")) == "the fine"
    with pytest.raises(DataError, match="replaces characters or drops spaces"):
        ours.encode_batch(["a"])


def test_what_stands_beside_the_file(sentencepiece_model: Model, tmp_path: Path) -> None:
    config = {
        "eos_token": "<|done|>",
        "added_tokens_decoder": {
            "702": {"content": "<|done|>", "special": True},
            "701": {"content": "<think>", "special": False},
        },
    }
    ours, theirs = opened(tmp_path, sentencepiece_model("llama"), tokenizer_config=config)
    size = theirs.vocab_size()
    assert size <= 701
    assert (ours.begin, ours.vocabulary) == ((1,), 703)
    assert ours.ends == {702, ours.end_of_document}
    assert ours.encode_with_marks("a<|done|>b<think>") == [
        *theirs.encode("a"),
        702,
        *theirs.encode("b"),
        701,
    ]
    plain = ours.encode("a<|done|>b")
    assert plain == theirs.encode("a<|done|>b")
    assert ours.decode([*plain, 702, 701]) == "a<|done|>b<think>"


def test_a_space_behind_marks_is_older_configs(sentencepiece_model: Model, tmp_path: Path) -> None:
    model = sentencepiece_model("symbols")
    mark = spm.SentencePieceProcessor(model_proto=model).piece_to_id("[INST]")
    for legacy, behind in ((None, "\u2581a"), (True, "\u2581a"), (False, "a")):
        config = {} if legacy is None else {"legacy": legacy}
        ours, _ = opened(tmp_path, model, tokenizer_config=config)
        tokens = ours.encode_with_marks("[INST]a")
        assert tokens[0] == mark
        assert "".join(ours.token_text(token) for token in tokens[1:]) == behind
        begun = ours.encode_with_marks("a[INST]", continues=True)
        assert "".join(ours.token_text(token) for token in begun[:-1]) == "a"


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_changes_nothing(
    kind: str, sentencepiece_model: Model, tmp_path: Path
) -> None:
    config = {"chat_template": "{{ messages[0].content }}"}
    ours, _ = opened(tmp_path, sentencepiece_model(kind), tokenizer_config=config)
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert isinstance(again, SentencePieceTokenizer)
    assert again.facts == ours.facts
    assert (again.begin, again.ends) == (ours.begin, ours.ends)
    for text in ODD:
        assert again.encode(text) == ours.encode(text)
        assert again.encode_with_marks(text) == ours.encode_with_marks(text)


def test_a_run_may_be_trained_with_one(sentencepiece_model: Model, tmp_path: Path) -> None:
    ours, _ = opened(tmp_path, sentencepiece_model("llama"))
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        config = FileConfig(kind="file", path=str(path), end_of_document="<s>")
        assert config.load().encode("the text") == ours.encode("the text")
        assert config.load().end_of_document == 1
        assert len(config.fingerprint()) == 64


def test_a_fingerprint_follows_the_files_beside_the_vocabulary(
    sentencepiece_model: Model, tmp_path: Path
) -> None:
    opened(tmp_path, sentencepiece_model("llama"))
    config = FileConfig(kind="file", path=str(tmp_path), end_of_document="<s>")
    before = config.fingerprint()
    assert config.fingerprint() == before
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"x": 1}', encoding="utf-8")
        assert config.fingerprint() != before
        before = config.fingerprint()


def test_the_end_of_a_document_has_no_text(sentencepiece_model: Model, tmp_path: Path) -> None:
    ours, processor = opened(tmp_path, sentencepiece_model("llama"))
    (*_, piece) = ours.encode("the")
    name = processor.id_to_piece(piece)
    plain = FileConfig(kind="file", path=str(tmp_path), end_of_document=name).load()
    assert plain.end_of_document == piece
    assert ours.decode([piece]) != ""
    assert plain.decode([piece]) == ""


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_transformers_reads_what_was_saved(
    kind: str, sentencepiece_model: Model, tmp_path: Path
) -> None:
    """But for what a tokenizer.json cannot say: see `SentencePieceTokenizer`."""
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    ours, _ = opened(tmp_path, sentencepiece_model(kind))
    ours.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ODD:
        if "<s>" not in text:
            tokens = ours.encode(text)
            assert theirs.encode(text, add_special_tokens=False) == tokens
            assert theirs.encode(text) == [*ours.begin, *tokens]
            if "\ufffd" not in text:
                assert theirs.decode(tokens) == ours.decode(tokens)


def test_transformers_own_reading_of_the_file(sentencepiece_model: Model, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    ours, _ = opened(tmp_path, sentencepiece_model("llama"))
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    for text in ODD:
        # It sets no space before one that is there, which SentencePiece does.
        if text and text[0] not in " \u2581" and "<s>" not in text:
            assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_refused_in_one_line_or_read(
    sentencepiece_model: Model, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = sentencepiece_model(data.draw(st.sampled_from(["symbols", "unigram", "folded"])))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            # The head of the file, where pieces lie, and its end, where the settings do.
            span = min(2000, len(damaged))
            at = data.draw(
                st.integers(0, span - 1) | st.integers(len(damaged) - span, len(damaged) - 1)
            )
            damaged[at] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "tokenizer.model").write_bytes(bytes(damaged))
    refused = ""
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("The ﬁrst 123\n  <sep>木"))
    except DataError as error:
        refused = str(error)
    assert "\n" not in refused
    assert len(refused) < 500


def test_what_is_no_such_file_is_named(tmp_path: Path, sentencepiece_model: Model) -> None:
    path = tmp_path / "tokenizer.model"
    for raw, problem in (
        (b"", "holds no pieces"),
        (b"\x0a\xff", "is cut short"),
        (b"<html>", r"is no tokenizer\.model|is cut short"),
        (b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", "has no end"),
        (sentencepiece_model("llama")[:5000], "is cut short|lacks|has no"),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=problem):
            load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_sentencepiece(tmp_path / "none.model")


def test_a_damaged_charsmap_is_named(sentencepiece_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "folded.model"
    path.write_bytes(sentencepiece_model("folded"))
    raw = read_sentencepiece(path).charsmap
    assert Charsmap(raw)("\uff21B ﬁ") == "ab fi"
    with pytest.raises(DataError, match="does not fit"):
        Charsmap(raw[:1000])
    # The trie alone, without the texts that it points to.
    size = int.from_bytes(raw[:4], "little")
    with pytest.raises(DataError, match="points behind its texts"):
        Charsmap(raw[: 4 + size])("\uff21")
    # The same in a folder that we saved, which a text is the first to notice.
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    own = tmp_path / "own"
    own.mkdir()
    load_tokenizer(tmp_path).save(own)
    tree = json.loads((own / "tokenizer.json").read_bytes())
    (step,) = (one for one in tree["normalizer"]["normalizers"] if one["type"] == "Precompiled")
    step["precompiled_charsmap"] = base64.b64encode(raw[: 4 + size]).decode()
    (own / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"own/tokenizer\.json: .*points behind its texts"):
        load_tokenizer(own).encode("\uff21")
    tree["added_tokens"][0]["content"] = 5
    (own / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"own/tokenizer\.json: not a tokenizer\.json of scored"):
        load_tokenizer(own)


def test_the_names_of_marks_stay_text(llama: CheckpointTokenizer) -> None:
    assert not set(llama.special.values()) & set(llama.encode("<s></s><unk>"))
    assert llama.encode_with_marks("</s>") == [2]
