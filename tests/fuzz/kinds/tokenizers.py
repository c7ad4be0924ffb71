"""tokenizer.json and tokenizer.model, and the files beside them that say what tokens are for."""

import json
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.kind import Kind
from tests.fuzz.mutations import json_text, near, odd_value, spoilt_bytes, spoilt_tree
from tests.fuzz.sentencepiece_models import small_model, spoilt_model, written

_TEXT = "def main(x1):\n    return 'Grüße, 木 🙂' <|im_end|> 12345\n"
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
# Of SentencePiece, by the number of its kind.
_PIECES = {"unigram": 1, "pieces": 2}
_PIECES_CONFIG = {
    "add_bos_token": True,
    "legacy": False,
    "eos_token": "</s>",
    "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
}


class Tokenizers(Kind):
    """Byte-level BPE and scored pieces, in a folder as Hugging Face has it, or as we do."""

    name = "tokenizers"

    def make_valid(self, folder: Path) -> None:
        from mixtura.tokenizers.saved_tokenizer import load_tokenizer

        hf = folder / "hf"
        hf.mkdir()
        for name, tree in _trees().items():
            (hf / name).write_text(json.dumps(tree))
        load_tokenizer(hf).save(folder / "ours")
        for name, number in _PIECES.items():
            own = folder / name
            own.mkdir()
            (own / "tokenizer.model").write_bytes(written(small_model(number)))
            (own / "tokenizer_config.json").write_text(json.dumps(_PIECES_CONFIG))
            load_tokenizer(own).save(folder / f"{name}-ours")

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        layout = rng.choice(["hf", "hf", "ours", *_PIECES, *(f"{name}-ours" for name in _PIECES)])
        own = case / layout
        own.mkdir()
        for path in (valid / layout).iterdir():
            (own / path.name).write_bytes(path.read_bytes())
        for _ in range(rng.choice([1, 1, 2])):
            path = own / rng.choice(sorted(path.name for path in own.iterdir()))
            data = path.read_bytes()
            if path.suffix == ".model" and rng.randrange(3):
                path.write_bytes(written(spoilt_model(rng, small_model(_PIECES[layout]))))
            elif path.suffix != ".json" or rng.randrange(6) == 0:
                path.write_bytes(spoilt_bytes(rng, data))
            else:
                tree = self._spoilt(rng, path.name, data)
                path.write_text(json_text(tree, rng), errors="surrogatepass")

    def _spoilt(self, rng: Random, name: str, data: bytes) -> Any:
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):
            return odd_value(rng)
        if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
            # An earlier change left no tokenizer.json, or it is another file.
            return spoilt_tree(rng, tree, odd=_odd)
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
        from mixtura.checkpoints.gguf.tokenizer_writer import tokenizer_keys
        from mixtura.errors import DataError, reading
        from mixtura.tokenizers import load_tokenizer
        from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer

        for own in case.iterdir():
            with reading(own):
                tokenizer = load_tokenizer(own)
            tokenizer.decode(tokenizer.encode(_TEXT))
            tokenizer.encode(_TEXT, continues=True)
            if isinstance(tokenizer, CheckpointTokenizer):
                tokenizer.decode(tokenizer.encode_with_marks(_TEXT))
                # As `convert --to gguf` takes it apart; a format that cannot hold it is no bug.
                with reading(own), suppress(DataError):
                    tokenizer_keys(tokenizer, tokenizer.vocabulary)


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
