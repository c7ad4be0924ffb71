"""A model's own tokenizer: what beside its tokens it says, from a folder and back."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixtura.errors import DataError
from mixtura.tokenizers import CheckpointTokenizer, SubwordTokenizer, TokenFacts, load_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import processors

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
MARKS = ("<s>", "<|end|>")


@pytest.fixture
def text(bpe: SubwordTokenizer, tmp_path: Path) -> str:
    """A tokenizer.json of 293 tokens, 291 being <s> and 292 <|end|>, which puts <s> in front."""
    bpe.save(tmp_path / "bpe")
    backend = Backend.from_file(str(tmp_path / "bpe" / "tokenizer.json"))
    backend.add_special_tokens(list(MARKS))
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "<|end|>"], special_tokens=[("<s>", 291), ("<|end|>", 292)]
    )
    return backend.to_str()


def hugging_face(folder: Path, text: str, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def loaded(folder: Path) -> CheckpointTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, CheckpointTokenizer)
    return tokenizer


def test_what_a_folder_says(text: str, tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<s>", "special": True},
        "eos_token": "<|end|>",
        "chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": TEMPLATE},
        ],
    }
    folder = hugging_face(
        tmp_path / "hf", text, tokenizer_config=config, generation_config={"eos_token_id": [292, 7]}
    )
    tokenizer = loaded(folder)
    # The beginning is the tokenizer.json's own; the end of a document is a usual one that it has.
    assert tokenizer.begin == (291,)
    assert tokenizer.end_of_document == 0
    assert tokenizer.ends == {0, 7, 292}
    assert tokenizer.facts.names == {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert tokenizer.chat_template == TEMPLATE
    assert dict(tokenizer.special) == {"<|endoftext|>": 0, "<s>": 291, "<|end|>": 292}


def test_a_folder_may_say_nothing(text: str, tmp_path: Path) -> None:
    tokenizer = loaded(hugging_face(tmp_path / "hf", text))
    assert (tokenizer.begin, tokenizer.ends) == ((291,), frozenset({0}))
    assert tokenizer.chat_template is None
    # Where generation_config.json is silent, config.json is asked.
    assert loaded(hugging_face(tmp_path / "hf", text, config={"eos_token_id": 292})).ends == {
        0,
        292,
    }


def test_whether_a_beginning_is_added_may_be_stated(text: str, tmp_path: Path) -> None:
    names = {"bos_token": "<|end|>"}
    for add, begin in ((True, (292,)), (False, ())):
        config = {**names, "add_bos_token": add}
        folder = hugging_face(tmp_path / "hf", text, tokenizer_config=config)
        assert loaded(folder).begin == begin


def test_a_template_of_its_own_file_comes_first(text: str, tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "hf", text, tokenizer_config={"chat_template": "no"})
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    assert loaded(folder).chat_template == TEMPLATE


def test_names_of_marks_are_text_unless_asked_for(text: str) -> None:
    tokenizer = CheckpointTokenizer(text, TokenFacts())
    assert tokenizer.encode_with_marks("the<|end|>") == [*tokenizer.encode("the"), 292]
    plain = tokenizer.encode("the<|end|>")
    assert 292 not in plain
    assert tokenizer.decode(plain) == "the<|end|>"
    assert tokenizer.decode([291, *tokenizer.encode("the"), 292]) == "the"
    # Asking once does not change the other way.
    assert tokenizer.encode("the<|end|>") == plain


def test_without_a_usual_end_the_models_own_ends_a_document(sentencepiece_json: str) -> None:
    text = sentencepiece_json.replace('"</s>"', '"<|done|>"')
    assert CheckpointTokenizer(text, TokenFacts(ends=("<|done|>",))).end_of_document == 2
    with pytest.raises(DataError, match="has none of"):
        CheckpointTokenizer(text, TokenFacts())


def test_saving_and_loading_changes_nothing(text: str, tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "<|end|>"}
    facts = TokenFacts(ends=("<|end|>", 9), names=names, chat_template=TEMPLATE)
    before = CheckpointTokenizer(text, facts)
    before.save(tmp_path / "saved")
    after = loaded(tmp_path / "saved")
    assert after.facts == facts
    assert (after.begin, after.ends) == (before.begin, before.ends) == ((291,), {0, 9, 292})
    assert after.encode("the café 木") == before.encode("the café 木")


def test_transformers_reads_what_was_saved(text: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    names = {"bos_token": "<s>", "eos_token": "<|end|>"}
    ours = CheckpointTokenizer(text, TokenFacts(names=names, chat_template=TEMPLATE))
    ours.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    said = "the café 木 <|end|>\n"
    assert theirs.encode(said, add_special_tokens=False) == ours.encode_with_marks(said)
    assert theirs.special_tokens_map == names
    talk = [{"role": "user", "content": "the"}]
    assert theirs.apply_chat_template(talk, tokenize=False) == "the\n"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer_config": {"eos_token": "<none>"}}, "has no token '<none>'"),
        ({"generation_config": {"eos_token_id": 999}}, "has no token 999"),
        ({"tokenizer_config": {"add_bos_token": True}}, "bos_token, but none is named"),
        ({"tokenizer_config": [1]}, r"tokenizer_config\.json: expected an object, found \[1\]"),
        ({"tokenizer_config": {"add_bos_token": "perhaps"}}, r"tokenizer_config\.json: add_bos"),
    ],
)
def test_what_a_folder_gets_wrong_is_named(
    text: str, tmp_path: Path, files: dict[str, Any], problem: str
) -> None:
    folder = hugging_face(tmp_path / "hf", text, **files)
    with pytest.raises(DataError, match=problem):
        load_tokenizer(folder)


def test_damaged_files_are_named(text: str, tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "hf", text)
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: is not JSON"):
        load_tokenizer(folder)
    CheckpointTokenizer(text, TokenFacts()).save(tmp_path / "saved")
    described = tmp_path / "saved" / "tokenizer.mixtura.json"
    described.write_text('{"kind": "checkpoint", "edns": []}', encoding="utf-8")
    with pytest.raises(DataError, match="unknown key 'edns'"):
        load_tokenizer(tmp_path / "saved")
