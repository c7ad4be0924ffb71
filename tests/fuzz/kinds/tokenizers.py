"""tokenizer.json, and the files beside it that say what its tokens are for."""

import json
from pathlib import Path
from random import Random
from typing import Any

from kind import Kind
from mutations import json_text, near, odd_value, spoilt_bytes, spoilt_tree

_TEXT = "def main(x1):\n    return 'Grüße, 木 🙂' <|im_end|> 12345\n"
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)


class Tokenizers(Kind):
    """Byte-level BPE of a few hundred tokens, in a folder as Hugging Face has it, or as we do."""

    name = "tokenizers"

    def make_valid(self, folder: Path) -> None:
        from mixtura.data.loading import load_tokenizer

        hf = folder / "hf"
        hf.mkdir()
        for name, tree in _trees().items():
            (hf / name).write_text(json.dumps(tree))
        load_tokenizer(hf).save(folder / "ours")

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        layout = rng.choice(["hf", "hf", "ours"])
        own = case / layout
        own.mkdir()
        for path in (valid / layout).iterdir():
            (own / path.name).write_bytes(path.read_bytes())
        for _ in range(rng.choice([1, 1, 2])):
            path = own / rng.choice(sorted(path.name for path in own.iterdir()))
            data = path.read_bytes()
            if path.suffix != ".json" or rng.randrange(6) == 0:
                path.write_bytes(spoilt_bytes(rng, data))
            else:
                tree = self._spoilt(rng, path.name, data)
                path.write_text(json_text(tree, rng), errors="surrogatepass")

    def _spoilt(self, rng: Random, name: str, data: bytes) -> Any:
        try:
            tree = json.loads(data)
        except ValueError:
            return odd_value(rng)
        if name == "tokenizer.json" and rng.randrange(3):
            # Else nearly every change is one of the vocabulary's many entries.
            key = rng.choice(sorted(set(tree) - {"model"}))
            return {**tree, key: spoilt_tree(rng, tree[key], odd=_odd)}
        if name == "tokenizer.json" and rng.randrange(2):
            own = tree["model"]
            key = rng.choice(sorted(own))
            few = isinstance(own[key], dict | list)
            changed = near(rng, own[key]) if few else _odd(rng)
            return {**tree, "model": {**own, key: changed}}
        return spoilt_tree(rng, tree, odd=_odd)

    def parse(self, case: Path) -> None:
        for own in case.iterdir():
            for path in own.glob("*.json"):
                json.loads(path.read_bytes())

    def read(self, case: Path) -> None:
        from mixtura.data import load_tokenizer
        from mixtura.data.byte_level_parts import byte_level_parts
        from mixtura.data.checkpoint_tokenizer import CheckpointTokenizer
        from mixtura.errors import reading

        for own in case.iterdir():
            with reading(own):
                tokenizer = load_tokenizer(own)
            tokens = tokenizer.encode(_TEXT)
            tokenizer.decode(tokens)
            if isinstance(tokenizer, CheckpointTokenizer):
                tokenizer.decode(tokenizer.encode_with_marks(_TEXT))
                # As `convert --to gguf` takes it apart; its line has no file to name.
                with reading(own):
                    _taken_apart(byte_level_parts, tokenizer, own)


def _taken_apart(take: Any, tokenizer: Any, own: Path) -> None:
    from mixtura.errors import DataError, UnexpectedError

    try:
        take(tokenizer)
    except UnexpectedError:
        raise
    except DataError as error:
        raise DataError(f"{own}: {error}") from error


def _trees() -> dict[str, Any]:
    """By file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_TEXT * 20], trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    end = {"content": "<|im_end|>", "lstrip": False, "special": True}
    return {
        "tokenizer.json": json.loads(backend.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": end,
            "add_bos_token": False,
            "chat_template": [{"name": "default", "template": _TEMPLATE}],
            "model_max_length": 10**30,
        },
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "unk_token": end},
        "generation_config.json": {"eos_token_id": [2, 0], "temperature": 0.6},
        "config.json": {"model_type": "llama", "eos_token_id": 2},
    }


def _odd(rng: Random) -> Any:
    if rng.randrange(2):
        return odd_value(rng)
    return rng.choice(
        [
            *({"type": "ByteLevel"}, {"type": "WordPiece"}, {"type": "Split"}, {"type": "NFC"}),
            *({"type": "Sequence", "pretokenizers": []}, {"type": "Metaspace"}, "BPE", "Unigram"),
            *("<|im_end|>", "<|none|>", 300, 2**32 - 1, [0, 10**6], ["a b", "a b"], "(", "a(?:b"),
            *({"Regex": "(a+)+$"}, {"String": ""}, {"type": "Replace", "content": ""}, "é b"),
        ]
    )


KINDS = [Tokenizers()]
