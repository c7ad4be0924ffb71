"""llama.cpp itself, in this process, computes from our files what we do.

V vocabulary, B prompts, S positions.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

pytest.importorskip("xllamacpp", reason="the extra `peers` brings it")
from tests.checkpoints.gguf.llama_cpp_peer import Peer

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer
from mixtura.checkpoints.gguf.file_writer import KindName, write_gguf
from mixtura.checkpoints.loaded_model import load_model
from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.packed.weights import PackedWeights
from mixtura.checkpoints.source_weights import SourceWeights
from mixtura.models import Decoder, DecoderConfig
from mixtura.models.packed_decoder import packed_decoder
from mixtura.packed import PackedFile, decoding
from mixtura.shapes.families import family_named
from mixtura.tokenizers import CheckpointTokenizer, SubwordTokenizer, TokenFacts
from mixtura.tokenizers.byte_level import SPLITTINGS, ByteLevelVocabulary, byte_level_tokenizer

Tiny = Callable[[str], FamilySource]
STEPS, PROMPTS = 6, 10


def test_in_32_bits_it_gives_our_probabilities(
    architecture: str,
    tiny: Tiny,
    bpe: SubwordTokenizer,
    tmp_path: Path,
    peer: Callable[[Path], Peer],
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny(architecture), bpe, path, name=architecture, kind="f32")
    decoder, theirs = load_model(path).decoder, peer(path)
    # 40 tokens pass gpt-oss's window of 8 and YaRN's 16 of training.
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        tokens_S = torch.randint(3, bpe.vocabulary, (40,), generator=draw)
        found_V = theirs.log_probabilities(tokens_S.tolist(), bpe)
        with torch.inference_mode():
            # Of the file's vocabulary those that the tokenizer lacks are there too.
            ours_V = decoder(tokens_S[None]).logits_BSV[0, -1].log_softmax(-1)
        torch.testing.assert_close(found_V, ours_V[: bpe.vocabulary], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_in_8_bits_it_says_the_same_tokens(
    name: str, tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path, peer: Callable[[Path], Peer]
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny(name), bpe, path, name=name)
    decoder, theirs = load_model(path).decoder, peer(path)
    prompts_BS, said_BS = decided(decoder)
    for prompt_S, said_S in zip(prompts_BS.tolist(), said_BS.tolist(), strict=True):
        assert theirs.greedy(prompt_S, STEPS) == said_S


def test_a_packed_models_weights_say_the_same_tokens(
    tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path, peer: Callable[[Path], Peer]
) -> None:
    source, family = tiny("olmoe"), family_named("olmoe")
    write_packed(tmp_path / "model.mixtura", SourceWeights(source), "olmoe", Precision(8, 8))
    file = PackedFile(tmp_path / "model.mixtura")
    path = tmp_path / "packed.gguf"
    of_file = FamilySource(PackedWeights(file), family)
    assert write_gguf(of_file, bpe, path, name="packed").kind == "q8_0"
    theirs, ours = peer(path), packed_decoder(file)
    prompts_BS, said_BS = decided(load_model(path).decoder)
    with torch.inference_mode(), decoding():
        logits_BSV = ours(torch.cat([prompts_BS, said_BS], 1)).logits_BSV
    # The packed decoder's own choice at each step is the next of these tokens.
    assert torch.equal(logits_BSV.argmax(-1)[:, -STEPS - 1 : -1], said_BS)
    for prompt_S, said_S in zip(prompts_BS.tolist(), said_BS.tolist(), strict=True):
        assert theirs.greedy(prompt_S, STEPS) == said_S


TEXTS = (
    "The capital of France is",
    "Don't we'll I'D  x1 12 123 1234567  7",
    "a\tb\n\nc \n d\r\n\r\n  e   \n\t\tf(x)==[1,2];!!!\n...?? --__-- $9.99 #if ",
    "Ünï é Straße Привет мир 日本語テスト 한국어 🙂\u200d ½²",
    "_snake CamelCASEWord /path/to.file (paren) «q» €+=<>^~|`a`1a2 x²y  ",
)
# llama.cpp ends GPT-4o's words before a combining mark, where the published pattern does not, and
# puts no text of Qwen's into canonical form.
COMBINING = "e\u0301 हिन्दी ภาษา"
KNOWN_OTHERWISE = {"gpt-4o", "qwen2"}


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_it_cuts_text_as_we_do(
    splitting: str, tiny: Tiny, tmp_path: Path, peer: Callable[[Path], Peer]
) -> None:
    """In fp32 one token more or less would show in every probability."""
    tokenizer = trained_on_texts(splitting)
    family = family_named("llama")
    tree = family.read({**tiny("llama").config, "vocab_size": tokenizer.vocabulary})
    torch.manual_seed(0)
    decoder = DecoderConfig.parse(tree).build()
    path = tmp_path / "tiny.gguf"
    write_gguf(FamilySource.of(decoder, family, path), tokenizer, path, name=splitting, kind="f32")
    theirs = peer(path)
    for text in TEXTS if splitting in KNOWN_OTHERWISE else (*TEXTS, COMBINING):
        tokens = [*tokenizer.begin, *tokenizer.encode(text)]
        found_V, expected_V = (theirs.log_probabilities(one, tokenizer) for one in (text, tokens))
        torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-5)


def trained_on_texts(splitting: str) -> CheckpointTokenizer:
    """Its merges cross every cut that this way of cutting does not make."""
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator((*TEXTS, COMBINING) * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    way = SPLITTINGS[splitting]
    vocabulary = ByteLevelVocabulary(
        tokens=["<|endoftext|>", *ordered],
        merges=[(left, right) for left, right in model["merges"]],
        splitting=way,
        special=["<|endoftext|>"],
        added=[],
        begin="<|endoftext|>" if way.begins else None,
    )
    return byte_level_tokenizer(vocabulary, TokenFacts(ends=("<|endoftext|>",)))


PROSE = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time,",
    "The three primary colours are",
    "Water boils at",
    "import numpy as np\n\nx =",
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "doubt"), [("f32", 0.0), ("q8_0", 0.3), ("q4_0", 0.3)])
def test_a_real_model_says_the_same(
    kind: KindName,
    doubt: float,
    smollm2: Path,
    tmp_path: Path,
    peer: Callable[[Path], Peer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SmolLM2-135M-Instruct, from a file of 4 bits.

    In fp32 every token is ours. llama.cpp rounds activations for blocks of 8 and 4 bits, so a token
    may be another one there that ours held nearly as likely: `doubt` is a difference of logits. It
    may be more only where the same rounding moves these two logits of ours apart by as much. (So
    it does at one token: by 0.8, where they differ by 0.65. At all others they do by 0.11 at most.)
    """
    source = GGUFSource(smollm2)
    tokenizer, path = gguf_tokenizer(source.metadata), tmp_path / "smollm2.gguf"
    write_gguf(source, tokenizer, path, name="smollm2", kind=kind)
    decoder, theirs = load_model(path).decoder, peer(path)
    for prompt in PROSE:
        tokens, said = tokenizer.encode(prompt), theirs.greedy(prompt, 24)
        logits_SV = continued(decoder, tokens, said)
        best_S = logits_SV.argmax(-1)
        lead_S = lead(logits_SV, best_S, said)
        allowed_S = torch.full_like(lead_S, doubt)
        if kind != "f32":
            with monkeypatch.context() as patch:
                patch.setattr(torch.nn.functional, "linear", linear_of_rounded)
                rounded_S = lead(continued(decoder, tokens, said), best_S, said)
            allowed_S = allowed_S.maximum((rounded_S - lead_S).abs())
        assert (lead_S <= allowed_S).all(), (prompt, lead_S, allowed_S)
        # Most are the same in any case.
        assert int((lead_S == 0).sum()) >= 0.8 * len(said), prompt


def continued(decoder: Decoder, tokens: list[int], said: list[int]) -> Tensor:
    """Our logits for each token that was said."""
    with torch.inference_mode():
        logits_BSV = decoder(torch.tensor([tokens + said])).logits_BSV
    return logits_BSV[0, len(tokens) - 1 : -1]


def lead(logits_SV: Tensor, best_S: Tensor, said: list[int]) -> Tensor:
    of_both_S2 = logits_SV.gather(1, torch.stack([best_S, torch.tensor(said)], 1))
    return of_both_S2[:, 0] - of_both_S2[:, 1]


exact_linear = torch.nn.functional.linear


def linear_of_rounded(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of rows in blocks of 32 of 8 bits, each with a scale of 16, as ggml multiplies."""
    blocks = rows.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    whole = (blocks / scale.clamp_min(1e-30)).round()
    return exact_linear((whole * scale.half().float()).flatten(-2), weight, bias)


def decided(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Of 1024 random prompts those whose continuation is least in doubt, and it, by our decoder.

    llama.cpp rounds activations to 8 bits, and random weights have near-ties: a few steps in a
    hundred would go the other way for that alone.
    """
    draw = torch.Generator().manual_seed(2)
    tokens_BS = torch.randint(3, 288, (1024, 12), generator=draw)
    margin_B = torch.full((len(tokens_BS),), torch.inf)
    for _ in range(STEPS):
        with torch.inference_mode():
            logits_BV = decoder(tokens_BS).logits_BSV[:, -1]
        best_B2 = logits_BV.topk(2).values
        margin_B = margin_B.minimum(best_B2[:, 0] - best_B2[:, 1])
        tokens_BS = torch.cat([tokens_BS, logits_BV.argmax(-1)[:, None]], 1)
    chosen_BS = tokens_BS[margin_B.topk(PROMPTS).indices]
    return chosen_BS[:, :-STEPS], chosen_BS[:, -STEPS:]
