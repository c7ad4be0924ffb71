"""Our decoder beside transformers' own model, on tiny random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.loaded_model import LoadedModel, load_model
from mixtura.models import Decoder, State

TOKENS = 11
GREEDY = 32
CHOOSING = ("correction_bias", "expert_bias")
Built = tuple[Any, LoadedModel]
Parity = Callable[..., Built]


@pytest.fixture
def parity(tmp_path: Path) -> Parity:
    """Build `model_type` with these keys, save it, load it as ours, and compare.

    Logits plain, padded on the right and on the left; then greedy tokens through both caches.
    """
    pytest.importorskip("transformers", reason="the extra `hf` brings it")

    def check(model_type: str, *, greedy: bool = True, **keys: Any) -> Built:
        theirs = build(model_type, **keys)
        folder = tmp_path / f"{model_type}-{len(list(tmp_path.iterdir()))}"
        theirs.save_pretrained(folder, max_shard_size="20KB")
        ours = load_model(folder)
        compare(theirs, ours.decoder, greedy=greedy)
        check_saved(theirs, ours, tmp_path / f"{folder.name}-saved")
        return theirs, ours

    return check


def build(model_type: str, **keys: Any) -> Any:
    """Random weights of which none is at its neutral start, norms and biases included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    # The reference; its faster ways refuse odd widths on a CPU.
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **keys), experts_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        # A bias that chooses experts is a buffer.
        biases = [b for name, b in model.named_buffers() if name.endswith(CHOOSING)]
        for tensor in (*model.parameters(), *biases):
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model.float()


def compare(theirs: Any, ours: Decoder, *, greedy: bool = True) -> None:
    tokens_BS = torch.randint(3, theirs.config.vocab_size, (3, TOKENS))
    for valid_BS in (None, padded([TOKENS, 4, 1]), padded([TOKENS, 4, 1]).flip(1)):
        mask = torch.ones_like(tokens_BS) if valid_BS is None else valid_BS.long()
        with torch.no_grad():
            wanted = theirs(tokens_BS, attention_mask=mask).logits
            found = ours(tokens_BS, valid_BS).logits_BSV
        shown = mask.bool()
        # 1e-4 of the largest logit.
        torch.testing.assert_close(
            found[shown], wanted[shown], rtol=0, atol=1e-4 * wanted.abs().max().item()
        )
    if greedy:
        left_BS = padded([TOKENS, 4, 7]).flip(1)
        with torch.no_grad():
            said = theirs.generate(
                tokens_BS,
                attention_mask=left_BS.long(),
                max_new_tokens=GREEDY,
                do_sample=False,
            )
        assert torch.equal(greedy_tokens(ours, tokens_BS, left_BS), said[:, TOKENS:])


def check_saved(theirs: Any, ours: LoadedModel, out: Path, served_by: str | None = None) -> None:
    """What we save is ours again bit for bit, and transformers' own model again.

    `served_by` is the model_type that transformers loads it as, if it has no class of its own.
    """
    saved = save_model(ours.decoder, ours.family, out, shard_bytes=20_000)
    again = load_model(out).decoder
    assert again.config == ours.decoder.config
    before, after = ours.decoder.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(saved.files) > 2
    if served_by is not None:
        rename(out, served_by)
    loaded = type(theirs).from_pretrained(out, dtype=torch.float32, experts_implementation="eager")
    tokens_BS = torch.randint(3, theirs.config.vocab_size, (2, TOKENS))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens_BS).logits, theirs(tokens_BS).logits)
    named = dict(loaded.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(named[name], tensor), name


def rename(folder: Path, model_type: str) -> None:
    """Give the model of a folder another model_type."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "model_type": model_type}), encoding="utf-8")


def padded(lengths: list[int]) -> Tensor:
    """valid_BS with that many tokens, padded at the end."""
    return torch.arange(TOKENS) < torch.tensor(lengths)[:, None]


def greedy_tokens(decoder: Decoder, tokens_BS: Tensor, valid_BS: Tensor) -> Tensor:
    """The likeliest continuation, one token at a time through the state."""
    state = State.empty(decoder.config, len(tokens_BS), TOKENS + GREEDY)
    said: list[Tensor] = []
    with torch.inference_mode():
        logits = decoder(tokens_BS, valid_BS, state).logits_BSV[:, -1:]
        for _ in range(GREEDY):
            said.append(logits.argmax(-1))
            logits = decoder(said[-1], None, state).logits_BSV
    return torch.cat(said, 1)
