"""lm-evaluation-harness gets the numbers from our engine that it gets from transformers."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="the extra `eval` brings it")
pytest.importorskip("transformers", reason="the extra `hf` brings it")
from lm_eval.api.instance import Instance

from mixtura.bench.evaluation import TaskOptions, bench_eval
from mixtura.bench.harness import EngineLM
from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.open_model import OpenModel, open_model
from mixtura.errors import ConfigError, DataError
from mixtura.models import DecoderConfig
from mixtura.progress import silent
from mixtura.shapes.families import family_named
from mixtura.tokenizers import BpeConfig
from mixtura.tokenizers.exported_tokenizer import as_checkpoint

TEXT = textwrap.wrap.__doc__ or ""
CONTEXTS = ("Wrap a single paragraph", "Wrap a single paragraph of text, ", "", "returning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mixtral of random weights, which transformers loads too."""
    out, family = tmp_path_factory.mktemp("eval") / "mixtral", family_named("mixtral")
    trained = BpeConfig(kind="bpe", vocabulary=320).build(lambda _: [TEXT * 4])
    tokenizer = as_checkpoint(trained)
    tree = {"vocab_size": tokenizer.vocabulary, "hidden_size": 32, "intermediate_size": 32}
    tree |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    tree |= {"num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 96}
    torch.manual_seed(0)
    decoder = DecoderConfig.parse(family.read({**tree, "model_type": "mixtral"})).build().eval()
    with torch.no_grad():
        # Of random weights, logits are so near each other that greedy answers would be chance.
        decoder.head.weight.mul_(20)
    save_model(decoder, family, out, companions=tokenizer.save)
    return out


@pytest.fixture(scope="module")
def opened(folder: Path) -> OpenModel:
    return open_model(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The harness's own model, over transformers."""
    from lm_eval.models.huggingface import HFLM

    # Its decorator hides what it takes.
    build: Any = HFLM
    return build(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def ours(opened: OpenModel) -> EngineLM:
    return EngineLM(opened, TaskOptions(("any",)), silent)


def test_log_probabilities_are_transformers(opened: OpenModel, theirs: Any) -> None:
    pairs = [
        (context, after) for context in CONTEXTS for after in (" text", " the width of it", "x")
    ]
    asked = instances("loglikelihood", pairs)
    found, expected = ours(opened).loglikelihood(asked), theirs.loglikelihood(asked)
    for (nats, greedy), (their_nats, their_greedy) in zip(found, expected, strict=True):
        assert nats == pytest.approx(their_nats, abs=1e-4)
        assert greedy == their_greedy


def test_rolling_windows_are_transformers(opened: OpenModel, theirs: Any) -> None:
    # The second is longer than the context of 96, so that it takes several windows.
    asked = instances("loglikelihood_rolling", [("A paragraph.",), (TEXT * 2,)])
    found = ours(opened).loglikelihood_rolling(asked)
    assert found == pytest.approx(theirs.loglikelihood_rolling(asked), abs=1e-3, rel=1e-5)


def test_greedy_answers_are_transformers(opened: OpenModel, theirs: Any) -> None:
    options = {"until": ["\n\n", "zz"], "max_gen_toks": 16, "do_sample": False}
    asked = instances("generate_until", [(context or "A", options) for context in CONTEXTS])
    assert ours(opened).generate_until(asked) == theirs.generate_until(asked)


def test_an_answer_stops_before_its_end(opened: OpenModel) -> None:
    model = ours(opened)
    (whole,) = model.generate_until(instances("generate_until", [("A", {"max_gen_toks": 16})]))
    stop = whole[3:5]
    options = {"max_gen_toks": 16, "until": stop}
    (cut,) = model.generate_until(instances("generate_until", [("A", options)]))
    assert cut == whole.partition(stop)[0]
    with pytest.raises(ConfigError, match="a task sets num_beams"):
        model.generate_until(instances("generate_until", [("A", {"num_beams": 4})]))
    # A context too long for the answer loses its beginning, and is answered.
    assert model.generate_until(instances("generate_until", [(TEXT * 3, {"max_gen_toks": 8})]))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of two choices, from a file beside it."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"text": "Wrap a single", "choices": ["paragraph", "zebra"], "label": 0}] * 3
    rows += [{"text": "returning a list of", "choices": ["of", "wrapped"], "label": 1}] * 3
    lines = "\n".join(map(json.dumps, rows))
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    task = {
        "task": "wrapped_words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "wrapped.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def test_a_task_of_ones_own_is_as_with_transformers(
    opened: OpenModel, theirs: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    wanted = TaskOptions(("wrapped_words",), folder=tasks)
    found = bench_eval(opened, wanted)
    (row,) = found.rows
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    their_run: Any = simple_evaluate
    expected = their_run(
        model=theirs, tasks=["wrapped_words"], task_manager=manager, log_samples=False
    )
    assert row.metric == "acc"
    assert row.questions == 6
    assert row.value == expected["results"]["wrapped_words"]["acc,none"]
    assert row.error == pytest.approx(expected["results"]["wrapped_words"]["acc_stderr,none"])
    assert set(found.versions) == {"mixtura", "torch", "python", "lm_eval"}
    assert (
        bench_eval(opened, TaskOptions(("wrapped_words",), 2, folder=tasks)).rows[0].questions == 2
    )


@pytest.mark.slow
def test_an_unknown_task_is_named_with_the_nearest(opened: OpenModel) -> None:
    """The harness reads thousands of files of its own for that."""
    with pytest.raises(ConfigError, match=r"no task 'hellaswga'; the nearest are .*hellaswag"):
        bench_eval(opened, TaskOptions(("mixtura_copy", "hellaswga")))


def test_what_cannot_be_had_is_one_line(opened: OpenModel, tasks: Path) -> None:
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="wrapped_words cannot be run") as caught:
        bench_eval(opened, TaskOptions(("wrapped_words",), folder=tasks))
    assert len(str(caught.value)) < 500
