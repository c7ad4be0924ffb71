"""What several tests of data share."""

from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from mixtura.data import BpeConfig, SubwordTokenizer

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def bpe() -> SubwordTokenizer:
    """Byte-level BPE of 300 tokens: 256 bytes, the end, and 43 merges."""
    text = ["the cat sat on the mat, the hat and the bat " * 4, "naïve café über, naïve café " * 4]
    return BpeConfig(kind="bpe", vocabulary=300).build(lambda _: text)


@pytest.fixture(scope="session")
def sentencepiece_json() -> str:
    """A tokenizer.json of the older kind: "▁" for spaces and at the start, `<0xE9>` for bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdehnot", "th", "the", "\u2581the"]
    backend = Backend(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[("t", "h"), ("th", "e"), ("\u2581", "the")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend.to_str()


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """Twenty documents in two folders of domains, and four files that are none."""
    folder = tmp_path / "corpus"
    for domain in ("prose", "sums"):
        (folder / domain).mkdir(parents=True)
    for n in range(10):
        (folder / "prose" / f"{n}.txt").write_text(f"Café number {n}.\n", encoding="utf-8")
        (folder / "sums" / f"{n}.txt").write_text(f"{n} + {n} = {2 * n}\n", encoding="utf-8")
    (folder / "binary.bin").write_bytes(b"ab\0cd")
    (folder / "empty.txt").write_bytes(b" \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "broken.txt").symlink_to("nowhere")
    return folder
