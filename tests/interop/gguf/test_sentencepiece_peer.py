"""llama.cpp reads SentencePiece's tokenizers from our files as we do, and talks as we do."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixtura.cli.app import run
from mixtura.data import CheckpointTokenizer, load_tokenizer
from mixtura.interop.decoder_source import DecoderSource
from mixtura.interop.gguf import GGUFSource, gguf_tokenizer
from mixtura.interop.gguf.writing import write_gguf
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named
