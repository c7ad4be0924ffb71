"""The `data` section of a recipe: the source and the tokenizer of a corpus."""

from typing import Annotated

from pydantic import Field

from mixtura.config import Config
from mixtura.data.huggingface import HuggingFaceSource
from mixtura.data.stdlib import StdlibSource
from mixtura.data.text import TextSource
from mixtura.tokenizers.subwords import BpeConfig, FileConfig
from mixtura.tokenizers.tokenizer import BytesConfig, GivenConfig

SourceConfig = Annotated[StdlibSource | TextSource | HuggingFaceSource, Field(discriminator="kind")]
TokenizerConfig = Annotated[
    BytesConfig | BpeConfig | FileConfig | GivenConfig, Field(discriminator="kind")
]


class DataConfig(Config):
    """The source, the tokenizer, and the fraction `heldout` of the documents that is held out.

    `seed` determines which documents are held out.
    """

    source: SourceConfig = StdlibSource()
    tokenizer: TokenizerConfig = BytesConfig()
    heldout: float = Field(default=0.05, gt=0, le=0.5)
    seed: int = Field(default=0, ge=0)
