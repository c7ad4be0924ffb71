"""SmolLM2-135M-Instruct, a real model: greedy tokens beside transformers', and many at once.

MIXTURA_SMOLLM2 says where its GGUF file is; `mixtura models pull smollm2` prints it. V vocabulary.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mixtura.checkpoints.loaded_model import load_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.engine.context import Context
from mixtura.engine.continuous_batch import ContinuousBatch
from mixtura.engine.runner import Runner
from mixtura.engine.sampling import Sampling
from mixtura.models import Decoder, State
from mixtura.models.packed_decoder import packed_decoder
from mixtura.packed import PackedFFN, PackedFile, PackedLinear
from mixtura.packed.folder import FILE
from mixtura.tokenizers import CheckpointTokenizer

pytestmark = pytest.mark.slow
TOKENS = 64
GREEDY = Sampling(temperature=0)
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three states of matter are",
    "Photosynthesis is the process by which",
    "To make a good cup of tea, first",
    "In 1969, the first humans",
    "import os\n\nclass Reader:\n    def __init__(self, path):\n",
    "Q: What is 7 times 8?\nA:",
    "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at",
    "The main causes of the First World War were",
    "A list of five animals:\n1.",
    "My favourite book is",
    "SELECT name, count(*) FROM",
    "The theory of evolution by natural selection",
    "She opened the door and",
    "The largest planet in our solar system is",
    "Music is important because",
]
Read = Callable[[Sequence[int]], Tensor]


class Answer(NamedTuple):
    """Greedy tokens, and how far the best logit lay above the second for each."""

    tokens: list[int]
    gaps: list[float]


@pytest.fixture(scope="module")
def decoder(smollm2: Path) -> Decoder:
    return load_model(smollm2, torch.bfloat16).decoder


def greedy(read: Read, prompt: Sequence[int]) -> Answer:
    answer = Answer([], [])
    logits_V = read(prompt)
    while len(answer.tokens) < TOKENS:
        best = logits_V.topk(2)
        answer.tokens.append(int(best.indices[0]))
        answer.gaps.append(float(best.values[0] - best.values[1]))
        logits_V = read(answer.tokens[-1:])
    return answer


def by_transformers(model: Any) -> Read:
    kept: list[Any] = [None]

    def read(tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            # By place, as transformers 5.24 gave the argument another name.
            output = model(torch.tensor([tokens]), None, None, kept[0], use_cache=True)
        kept[0] = output.past_key_values
        return output.logits[0, -1].float()

    return read


def by_context(decoder: Decoder) -> Read:
    context = Context(decoder)

    def read(tokens: Sequence[int]) -> Tensor:
        return context.read(tokens, "decode" if context.tokens else "prefill")

    return read


def by_decoder(decoder: Decoder) -> Read:
    state = State.empty(decoder.config, 1, 128, torch.bfloat16)

    def read(tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return decoder(torch.tensor([tokens]), state=state).logits_BSV[0, -1].float()

    return read


def where_they_part(a: Answer, b: Answer) -> str:
    """Nothing where they do not."""
    pairs = enumerate(zip(a.tokens, b.tokens, strict=True))
    first = next((at for at, (x, y) in pairs if x != y), None)
    return "" if first is None else f"token {first}: gaps {a.gaps[first]}, {b.gaps[first]}"


# Three times 20 x 64 tokens, one after the other.
@pytest.mark.timeout(3600)
def test_greedy_tokens_in_bf16_are_transformers_and_the_decoders(
    smollm2: Path, smollm2_tokenizer: CheckpointTokenizer, decoder: Decoder
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `hf` brings it")
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.bfloat16
    ).eval()
    parted: dict[str, list[str]] = {}
    for prompt in PROMPTS:
        tokens = smollm2_tokenizer.encode(prompt)
        ours = greedy(by_context(decoder), tokens)
        others = (
            greedy(by_transformers(theirs), tokens),
            greedy(by_decoder(decoder), tokens),
        )
        parted[prompt] = [where for other in others if (where := where_they_part(ours, other))]
    assert not {prompt: where for prompt, where in parted.items() if where}


@pytest.fixture(scope="module", params=[4, 8])
def packed(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: Any) -> Decoder:
    folder = tmp_path_factory.mktemp("packed") / "smollm2"
    pack_model(smollm2, folder, request.param)
    return packed_decoder(PackedFile(folder / FILE))


def test_packed_and_sixteen_at_once_each_writes_what_it_writes_alone(
    packed: Decoder, smollm2_tokenizer: CheckpointTokenizer
) -> None:
    batch = ContinuousBatch(Runner.of(packed, 16, 128))
    running = [
        batch.add(smollm2_tokenizer.encode(prompt), GREEDY, TOKENS) for prompt in PROMPTS[:16]
    ]
    while batch.running:
        batch.advance()
    for one in running:
        alone = ContinuousBatch(Runner.of(packed, 1, 128))
        again = alone.add(one.prompt, GREEDY, TOKENS)
        while alone.running:
            alone.advance()
        assert one.tokens == again.tokens


def test_packed_logits_are_off_by_less_than_their_weights_cost(
    smollm2: Path, packed: Decoder, smollm2_tokenizer: CheckpointTokenizer
) -> None:
    """Beside the model itself, and beside the model with the packed weights, all in fp32."""
    exact, rounded = (load_model(smollm2, torch.float32).decoder for _ in range(2))
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, PackedLinear):
                rounded.get_parameter(f"{name}.weight").copy_(module.dequantised())
            elif isinstance(module, PackedFFN):
                weights = module.dequantised()
                rounded.get_parameter(f"{name}.w_in").copy_(weights.w_in[0])
                rounded.get_parameter(f"{name}.w_out").copy_(weights.w_out[0])
    of_weights = of_engine = 0.0
    for prompt in PROMPTS:
        tokens = smollm2_tokenizer.encode(prompt)
        expected_V, rounded_V, found_V = (
            Context(model, capacity=64).become(tokens) for model in (exact, rounded, packed)
        )
        of_weights += float((rounded_V - expected_V).square().sum())
        of_engine += float((found_V - rounded_V).square().sum())
    assert of_engine < of_weights
