"""A reader that does each thing that a reader must not do, as the case's file says."""

import ctypes
import os
import time
import warnings
from pathlib import Path
from random import Random

from tests.fuzz.kind import Kind

from mixtura.errors import MixturaError

DEEDS = [
    *("accept", "refuse", "refuse without a name", "raise", "hang", "crash", "fill memory"),
    *("fill memory and refuse", "print", "leave", "warn"),
]


class Sick(Kind):
    name = "sick"
    seconds = 0.5

    def make_valid(self, folder: Path) -> None:
        (folder / "deed").write_text("accept")

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        (case / "deed").write_text(rng.choice(DEEDS))

    def parse(self, case: Path) -> None:
        assert (case / "deed").read_text() != "refuse"

    def read(self, case: Path) -> None:
        match (case / "deed").read_text():
            case "refuse":
                raise MixturaError(f"{case / 'deed'}: has \x1b[31m\nno good in it; try another")
            case "refuse without a name":
                raise MixturaError("something is wrong")
            case "raise":
                raise KeyError("deed")
            case "hang":
                time.sleep(60)
            case "crash":
                ctypes.string_at(1)
            case "fill memory":
                bytearray(3 << 30)
            case "fill memory and refuse":
                try:
                    bytearray(3 << 30)
                except MemoryError as error:
                    raise MixturaError(f"{case / 'deed'}: is large") from error
            case "print":
                os.write(2, b"thread panicked at")
            case "leave":
                raise SystemExit(0)
            case "warn":
                warnings.warn("odd", stacklevel=1)
