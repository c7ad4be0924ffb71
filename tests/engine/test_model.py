"""The front door: each kind of model is loaded, and continues, chats, traces and batches."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mixtura
from mixtura.checkpoints.conversion import convert_model
from mixtura.checkpoints.gguf_conversion import convert_to_gguf
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.engine.sampling import Sampling
from mixtura.errors import CheckpointError, ConfigError
from mixtura.trace import TraceReader

GREEDY = {"temperature": 0}
WRITE: dict[str, Callable[[Path, Path], object]] = {
    "packed": lambda run, out: pack_model(run, out, bits=8),
    "hf": convert_model,
    "tiny.gguf": lambda run, out: convert_to_gguf(run, out, kind="f32"),
}


@pytest.fixture(scope="module")
def paths(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, write in WRITE.items():
        write(tiny_run, folder / name)
    return {"run": tiny_run, **{name: folder / name for name in WRITE}}


@pytest.mark.parametrize("name", ["run", *WRITE])
def test_each_kind_of_model_is_loaded_and_generates(name: str, paths: dict[str, Path]) -> None:
    model = mixtura.load(paths[name])
    text = model.generate("1 + 1 =", 8, sampling=GREEDY)
    stream = model.stream("1 + 1 =", 8, sampling=Sampling(temperature=0))
    assert "".join(stream) == text
    assert stream.result.text == text
    assert 0 < len(stream.result.tokens) <= 8
    assert (model.config.vocabulary, model.decoder.training) == (257, False)
    # What is said of it has its name.
    assert paths[name].name in repr(model)


def test_settings_are_by_name_and_checked(paths: dict[str, Path]) -> None:
    model = mixtura.load(paths["run"])
    first, again = (model.generate("1 + ", 12, sampling={"seed": 7}) for _ in range(2))
    assert first == again
    assert len(model.generate("1 + ", 12, stop="=", sampling=GREEDY)) < 12
    with pytest.raises(ConfigError, match=r"temperature=-1.0 must be 0 or more"):
        model.generate("1", sampling={"temperature": -1.0})
    with pytest.raises(ConfigError, match="max_tokens=0 must be 1 or more"):
        model.generate("1", 0)
    with pytest.raises(ConfigError, match="unknown key 'temprature'"):
        model.generate("1", sampling={"temprature": 1})


def test_a_chat_remembers_its_turns(paths: dict[str, Path]) -> None:
    chat = mixtura.load(paths["run"]).chat(max_tokens=4, sampling=GREEDY)
    for said in ("1 + 1", "2 + 2"):
        assert "".join(chat.say(said).answer) == chat.turns[-1].answer
    assert [turn.said for turn in chat.turns] == ["1 + 1", "2 + 2"]


def test_a_batch_answers_as_one_text_alone_does(paths: dict[str, Path]) -> None:
    model = mixtura.load(paths["packed"])
    batch = model.batch(slots=2, context=32)
    prompts = ["1 + 1 =", "7 + 2 ="]
    running = [
        batch.add(model.tokenizer.encode(prompt), Sampling(temperature=0), 6, model.tokenizer.ends)
        for prompt in prompts
    ]
    while batch.running:
        batch.advance()
    for prompt, one in zip(prompts, running, strict=True):
        assert model.tokenizer.decode(one.tokens) == model.generate(prompt, 6, sampling=GREEDY)


def test_texts_are_traced(paths: dict[str, Path], tmp_path: Path) -> None:
    traced = mixtura.load(paths["run"]).trace(["1 + 1 = 2", "a"], tmp_path / "t.parquet")
    # Bytes are the tokens: 9 and 1.
    assert (traced.tokens, traced.sequences) == (10, 2)
    with TraceReader(tmp_path / "t.parquet") as trace:
        assert (len(trace), trace.meta.numbers) == (10, (0, 1))


def test_what_cannot_be_loaded_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing"):
        mixtura.load(tmp_path / "nothing")


def test_a_line_of_python_generates(tiny_run: Path) -> None:
    line = f"import mixtura; print(mixtura.load({str(tiny_run)!r}).generate('1 +', 4))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
