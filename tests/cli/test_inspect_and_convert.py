"""`mixtura inspect` and `mixtura convert`, on a run of ours and on folders."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.loaded_model import load_model
from mixtura.checkpoints.loaded_run import load_run
from mixtura.checkpoints.open_model import open_model

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


def test_a_known_name_gives_the_shape(inside: Mixtura) -> None:
    done = inside("inspect", "mixtral-8x7b", "--json")
    found = json.loads(done.stdout)
    assert found["family"] == "mixtral"
    # The figures that are published.
    assert found["parameters"] == {
        "total": 46_702_792_704,
        "active_A": 12_879_925_248,
        "active_B": 12_748_853_248,
    }
    assert sum(found["parameters_by_role"].values()) == 46_702_792_704
    assert found["tensors"] == []


def test_an_unknown_name_suggests_the_nearest(inside: Mixtura) -> None:
    done = inside("inspect", "mixtrall-8x7b")
    assert done.returncode == 2
    assert "the nearest are mixtral-8x7b" in done.stderr


def test_a_recipe_gives_its_model_and_its_run(inside: Mixtura) -> None:
    shown = inside("inspect", "stdlib-bytes", "--set", "train.steps=100").stdout.splitlines()
    assert shown[0].startswith("stdlib-bytes: decoder, 4 layers of width 128, 4 heads, vocabulary")
    assert shown[0].endswith("8 experts of 128, top-2, in 4 of 4 layers, router softmax_topk")
    # Steps of 16 * 256 tokens; four bytes a weight, and two moments of four.
    assert shown[-3:] == [
        "tokens                 409,600  100 steps of 4,096",
        "weights              7,362,048  bytes, in fp32",
        "optimizer           14,724,096  bytes, AdamW's two moments in fp32",
    ]
    found = json.loads(inside("inspect", "stdlib-bytes", "--json").stdout)
    assert found["parameters"]["total"] * 4 == found["training"]["weight_bytes"] == 7_362_048
    assert found["training"]["tokens"] == 2_457_600
    assert found["flops_per_token"] == 1_253_632
    twins = inside("inspect", "lstm-moe").stdout
    assert "lstm-moe: lstm_moe, width 64, vocabulary 257, router noisy_topk" in twins


def test_what_a_recipe_cannot_say_is_refused(inside: Mixtura, tmp_path: Path) -> None:
    (tmp_path / "tuned.yaml").write_text("name: tuned\n", encoding="utf-8")
    for arguments, problem in {
        ("stdlib-bytes", "--verify"): "stdlib-bytes is a recipe, and holds no weights to verify",
        ("olmoe-1b-7b", "--set", "a=1"): "--set a=1: olmoe-1b-7b is no recipe, so it has no key",
        ("tuned.yaml",): "tuned.yaml: has no section 'model'; it goes on from the model of --from",
        ("mine.yaml",): "mine.yaml: no such file; give the path of a YAML recipe, or one of lstm",
    }.items():
        done = inside("inspect", *arguments)
        assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


def test_a_run_becomes_a_folder_that_says_the_same(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    done = inside("convert", tiny_run, "out", "--to", "hf", "--json")
    assert (done.returncode, json.loads(done.stdout)["family"]) == (0, "mixtral")
    run, opened = load_run(tiny_run), open_model(tmp_path / "out")
    text = "1 + 2 = ünï 木"
    tokens = run.tokenizer.encode(text)
    assert opened.tokenizer.encode(text) == tokens
    assert opened.tokenizer.ends == run.tokenizer.ends
    assert opened.title == "out"
    tokens_BS = torch.tensor([tokens])
    assert torch.equal(run.decoder(tokens_BS).logits_BSV, opened.decoder(tokens_BS).logits_BSV)
    said = inside("generate", tmp_path / "out", *("--prompt", "1 +", "--temperature", "0"))
    before = inside("generate", tiny_run, *("--prompt", "1 +", "--temperature", "0"))
    assert said.stdout == before.stdout
    listed = json.loads(inside("inspect", tmp_path / "out", "--json").stdout)
    assert listed["parameters"]["total"] == run.decoder.config.total_parameters()
    # One of each tensor.
    assert listed["digests"] == sum(group["count"] for group in listed["tensors"])
    shown = inside("inspect", tmp_path / "out").stdout
    assert "block_sparse_moe.experts.{0..3}.w1.weight" in shown
    assert f"{listed['digests']} digests, which loading checks" in shown


def test_transformers_reads_the_folder_and_its_tokenizer(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    inside("convert", tiny_run, "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, experts_implementation="eager"
    ).eval()
    run = load_run(tiny_run)
    text = "if x == 1:\n\tprint('naïve 木')  "
    assert tokenizer(text)["input_ids"] == run.tokenizer.encode(text)
    assert tokenizer.decode(run.tokenizer.encode(text)) == text
    tokens_BS = torch.tensor([run.tokenizer.encode(text)])
    with torch.no_grad():
        wanted, found = model(tokens_BS).logits, run.decoder(tokens_BS).logits_BSV
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert model.generation_config.eos_token_id == run.tokenizer.end_of_document


def test_a_family_without_words_for_it_is_refused(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    for family, said in {
        "llama": "this decoder has an MoE in every layer",
        "olmoe": "attention.norm=None has no place in a olmoe config",
        "qwen4": "model_type='qwen4' is no family",
    }.items():
        done = inside("convert", tiny_run, "out", "--family", family)
        assert done.returncode == 2
        assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_its_family_in_another_dtype(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    inside("convert", tiny_run, "one")
    done = inside("convert", tmp_path / "one", "two", "--dtype", "bfloat16", "--shard-gb", "0.001")
    assert (done.returncode, done.stdout) == (0, "two\n")
    loaded = load_model(tmp_path / "two")
    dtypes = {name: tensor.dtype for name, tensor in loaded.decoder.named_parameters()}
    # Gates are not rounded.
    assert {dtypes.pop(name) for name in list(dtypes) if ".router." in name} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}
    assert (tmp_path / "two" / "tokenizer.json").read_bytes() == (
        tmp_path / "one" / "tokenizer.json"
    ).read_bytes()
    done = inside("convert", tmp_path / "one", "two")
    assert done.returncode == 2
    assert "two: already exists" in done.stderr


def test_a_run_becomes_a_file_of_llama_cpps_that_says_the_same(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    done = inside("convert", tiny_run, "out.gguf", "--to", "gguf", "--type", "f32", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["architecture"], found["type"]) == (0, "llama", "f32")
    assert found["bytes"] == (tmp_path / "out.gguf").stat().st_size
    asked = ("--prompt", "1 +", "--temperature", "0")
    assert (
        inside("generate", "out.gguf", *asked).stdout == inside("generate", tiny_run, *asked).stdout
    )
    listed = json.loads(inside("inspect", "out.gguf", "--json").stdout)
    assert listed["family"] == "mixtral"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--to", "gguf"), "rows of 16 numbers, which the blocks of 32 of q8_0 do not fill"),
        (("--to", "gguf", "--dtype", "bfloat16"), "--dtype bfloat16 is for --to hf; say what to"),
        (("--to", "gguf", "--shard-gb", "2"), "--shard-gb 2 is for --to hf; a GGUF file is one"),
        (("--to", "hf", "--type", "f32"), "--type f32 is for --to gguf; say what to store with"),
        (("--to", "gguf", "--family", "phimoe"), "a phimoe model is not written as GGUF; these"),
    ],
)
def test_what_cannot_become_such_a_file_is_named(
    options: tuple[str, ...], problem: str, inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    done = inside("convert", tiny_run, "out.gguf", *options)
    assert done.returncode == 2
    assert problem in done.stderr
    assert not list(tmp_path.iterdir())
