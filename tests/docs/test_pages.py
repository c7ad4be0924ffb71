"""Every block of every page runs, in order, in a folder that holds what the page says it needs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import KINDS, blocks

from mixtura.checkpoints.model_fetch import pull
from mixtura.checkpoints.pulled_models import pulled_cache
from mixtura.progress import silent

REPOSITORY = Path(__file__).parents[2]
FOLLOWED = Path(__file__).with_name("pages.py")

Bring = Callable[[str, Path], None]
"""bring(name, folder) puts a thing there that pages take for granted"""

RUN, OLMOE, QWEN3 = "runs/first", "OLMoE-1B-7B-0924", "Qwen3-30B-A3B"
# A model of the user's cache, not a path.
SMOLLM2 = "smollm2"
# What each page says that a reader has at hand. A page that is not listed needs nothing.
NEEDS = {
    "README.md": (SMOLLM2,),
    "balancing-in-transformers.md": (QWEN3,),
    "checkpoints.md": (RUN, OLMOE),
    "engine.md": (RUN, OLMOE),
    "eval.md": (RUN,),
    "generate.md": (RUN, SMOLLM2),
    "gguf.md": (RUN, OLMOE, SMOLLM2),
    "models.md": (SMOLLM2,),
    "packed.md": (RUN, OLMOE, SMOLLM2),
    "quality.md": (RUN, SMOLLM2),
    "quickstart.md": (SMOLLM2,),
    "report.md": (RUN,),
    "traces.md": (RUN, OLMOE),
    "transformers-backend.md": (OLMOE,),
    "tutorial.md": (SMOLLM2,),
}
FAST = {"moe-layer.md", "local-experts.md"}

PAGES = [
    page
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    if "```" in page.read_text(encoding="utf-8")
]


@pytest.fixture(scope="session")
def bring(tmp_path_factory: pytest.TempPathFactory) -> Bring:
    made = tmp_path_factory.mktemp("made")

    def brought(name: str, folder: Path) -> None:
        if name == SMOLLM2:
            pull_smollm2()
            return
        if not (made / name).exists():
            MAKERS[name](made / name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Copied, as a page may write there.
        _copy(made / name, folder / name)

    return brought


def first_run(folder: Path) -> None:
    """What the quickstart trains, after a few steps."""
    from mixtura.runs import load_recipe
    from mixtura.train import train

    short = ["train.steps=4", "train.warmup=2", "train.eval_tokens=1024"]
    train(load_recipe(REPOSITORY / "recipes" / "stdlib-bytes.yaml", short), folder)


def olmoe(folder: Path) -> None:
    """A folder with OLMoE's layout, a thirtieth of its width, and bytes as tokens."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    from mixtura.tokenizers import ByteTokenizer
    from mixtura.tokenizers.exported_tokenizer import as_checkpoint

    tokenizer = ByteTokenizer()
    # No more: weights at random may choose any token, and each needs a text.
    vocabulary: dict[str, Any] = {
        "vocab_size": tokenizer.vocabulary,
        "eos_token_id": tokenizer.end_of_document,
        "pad_token_id": None,
    }
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, **vocabulary}
    counts: dict[str, Any] = {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    experts: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2}
    config = OlmoeConfig(**sizes, **counts, **experts, max_position_embeddings=4096)
    OlmoeForCausalLM(config).bfloat16().save_pretrained(folder)
    as_checkpoint(tokenizer).save(folder)


def qwen3(folder: Path) -> None:
    """A folder with Qwen3-MoE's layout."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "moe_intermediate_size": 32,
        "vocab_size": 320,
        "head_dim": 16,
    }
    counts: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    experts: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **counts, **experts)).save_pretrained(folder)


def pull_smollm2() -> None:
    """The real file: MIXTURA_SMOLLM2, or else by pip, which needs a network."""
    stated = os.environ.get("MIXTURA_SMOLLM2")
    if stated is None:
        pull(SMOLLM2, silent)
        return

    def write(folder: Path, _: Callable[[int], None]) -> None:
        shutil.copy(stated, folder)

    pulled_cache().made(SMOLLM2, write).release()


MAKERS: dict[str, Callable[[Path], None]] = {
    RUN: first_run,
    OLMOE: olmoe,
    QWEN3: qwen3,
}


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


# Some pages train several models, pack one and report.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=() if page.name in FAST else pytest.mark.slow)
        for page in PAGES
    ],
)
def test_every_block_of_the_page_runs(page: Path, bring: Bring, tmp_path: Path) -> None:
    # Commands stand in a clone that is set up.
    for name in ("README.md", "recipes", "examples", "experiments"):
        _copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    for name in NEEDS.get(page.name, ()):
        bring(name, tmp_path)
    done = subprocess.run(
        [sys.executable, str(FOLLOWED), str(page), str(tmp_path)],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "2", **os.environ},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-6000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_of_the_page_is_a_block_that_is_followed(page: Path) -> None:
    found = blocks(page)
    # A fence in a form that is not read would be passed over in silence.
    lines = page.read_text(encoding="utf-8").splitlines()
    assert sum(line.lstrip().startswith("```") for line in lines) == 2 * len(found)
    assert {block.language for block in found} <= KINDS


def test_blocks_have_title_reason_and_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'text\n```json title="asked.jsonl"\n{}\n```\n<!-- not run: takes hours -->\n```\nls\n```\n'
    )
    asked, command = blocks(page)
    assert (asked.line, asked.language, asked.title, asked.text) == (
        2,
        "json",
        "asked.jsonl",
        "{}\n",
    )
    assert (command.not_run, command.text) == ("takes hours", "ls\n")
