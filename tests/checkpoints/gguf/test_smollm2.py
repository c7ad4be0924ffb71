"""SmolLM2-135M-Instruct, a real file of 4 bits, beside transformers' own reading of it.

MIXTURA_SMOLLM2 says where it is; `mixtura models pull smollm2` fetches it.
"""

import math
import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer
from mixtura.checkpoints.loaded_model import load_model
from mixtura.engine.conversation import Conversation
from mixtura.engine.generate import generate
from mixtura.engine.sampling import Sampling
from mixtura.tokenizers import CheckpointTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[3]
# Spaces of all kinds, digits of three scripts, joined emoji, right-to-left, combining accents.
RICH = (
    "  12  345\t6,789.0½²\r\n\n\t x=1;\n\n\n   y  = 'don't'\u00a0\u2003\u3000\n"
    "Ünï-cödé e\u0301 ﬁn Straße İstanbul \u017f K Å \u1e9e\u0130\n"
    "Привет, мир! Ελληνικά 日本語テスト 한국어 ภาษาไทย हिन्दी עברית العربية ١٢٣ ٤٥ १२\n"
    "🙂👩‍👩‍👧‍👦🇩🇪 ✈️ \U0001d504\U0001d7d9 \ufeff\u200b\u200d\ufffd\x00\x7f<|im_end|><|endoftext|> \n"
)


def test_tensors_and_logits_are_transformers(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    source, loaded = GGUFSource(smollm2), load_model(smollm2)
    assert sum(tensor.parameters for tensor in source.tensors.values()) == 134_515_008
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name
    ).eval()
    found = theirs.state_dict()
    # The head is the embedding.
    assert set(found) - set(source.tensors) == {"lm_head.weight"}
    for name in source.tensors:
        assert torch.equal(source.read(name), found[name].float()), name
    tokens_BS = torch.tensor([gguf_tokenizer(source.metadata).encode("The capital of France is")])
    with torch.inference_mode():
        expected_BSV = theirs(tokens_BS).logits
        ours_BSV = loaded.decoder(tokens_BS).logits_BSV
    torch.testing.assert_close(ours_BSV, expected_BSV, rtol=1e-3, atol=1e-3)


def test_it_knows_the_capital_of_france(
    smollm2: Path, smollm2_tokenizer: CheckpointTokenizer
) -> None:
    decoder = load_model(smollm2).decoder
    stream = generate(
        decoder, smollm2_tokenizer, "The capital of France is", Sampling(temperature=0), 2
    )
    assert "".join(stream) == " Paris."
    talk = Conversation(decoder, smollm2_tokenizer, Sampling(temperature=0), max_tokens=20)
    answer = talk.say("What is the capital of Italy? One sentence.").answer
    assert "Rome" in "".join(answer)
    assert answer.result.finish == "end"


def test_bits_per_byte_are_transformers(
    smollm2: Path, smollm2_tokenizer: CheckpointTokenizer
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    decoder = load_model(smollm2).decoder
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name
    ).eval()
    # The standard library's random.py, its first 2,048 tokens.
    tokens = smollm2_tokenizer.encode(Path(random.__file__).read_text(encoding="utf-8"))[:2048]
    read = smollm2_tokenizer.byte_length(tokens[1:])

    def bits_per_byte(logits_BSV: torch.Tensor) -> float:
        wanted_S = torch.tensor(tokens[1:])
        nats = F.cross_entropy(logits_BSV[0, :-1].float(), wanted_S, reduction="sum")
        return nats.item() / math.log(2) / read

    with torch.inference_mode():
        ours = bits_per_byte(decoder(torch.tensor([tokens])).logits_BSV)
        expected = bits_per_byte(theirs(torch.tensor([tokens])).logits)
    assert 0.5 < ours < 1.1
    assert ours == pytest.approx(expected, rel=1e-4)


def test_tokens_are_those_of_the_published_tokenizer(
    smollm2_tokenizer: CheckpointTokenizer,
) -> None:
    """SmolLM2's own cuts digits singly and then words as GPT-2; both are parts of `tokenizers`."""
    published = Backend.from_str(smollm2_tokenizer._backend.to_str())
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    published.encode_special_tokens = True
    for text in texts():
        tokens = smollm2_tokenizer.encode(text)
        assert tokens == published.encode(text, add_special_tokens=False).ids
        assert smollm2_tokenizer.decode(tokens) == text
        stream = smollm2_tokenizer.stream()
        assert "".join([*map(stream.push, tokens), stream.finish()]) == text


def test_tokens_are_transformers_but_for_spaces_before_digits(
    smollm2: Path, smollm2_tokenizer: CheckpointTokenizer
) -> None:
    """transformers leaves out that digits are cut first, so they may join a space before them."""
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in texts():
        for line in text.splitlines(keepends=True):
            if not any(a.isspace() and b.isnumeric() for a, b in pairwise(line)):
                expected = theirs.encode(line, add_special_tokens=False)
                assert smollm2_tokenizer.encode_with_marks(line) == expected, line


def texts() -> list[str]:
    pages = sorted((REPOSITORY / "docs").rglob("*.md"))
    module = Path(sys.modules["random"].__file__ or "")
    return [RICH, *(page.read_text(encoding="utf-8") for page in (*pages, module))]
