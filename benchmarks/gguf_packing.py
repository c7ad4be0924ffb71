"""How fast 'mixtura pack' packs a GGUF file of K-quants, in MB of the file a second.

A Mixtral of random blocks is written for each kind, and packed in the bits that keep its precision.
Files are read from the page cache. Beside wall time stands the processor time of all threads, which
other programs on the machine disturb less. The last line is JSON.

    python benchmarks/gguf_packing.py --megabytes 300
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from mixtura.checkpoints.gguf import GGUFSource
from mixtura.checkpoints.gguf.kinds import BLOCKS, Kind
from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.source_weights import SourceWeights

KINDS = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
# Where in a block its fp16 scales are.
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
}
RUNS = 3
WIDTH, EXPERT_WIDTH, EXPERTS, HEADS, VOCABULARY = 1024, 2048, 8, 8, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300, help="the size of each file")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / "model.gguf"
            write(path, kind, layers=1)
            packed_in(path)
            write(path, kind, layers=max(1, round(given.megabytes * 1e6 / layer_bytes(kind))))
            size = path.stat().st_size / 1e6
            packing = min(packed_in(path) for _ in range(RUNS))
            unpacking = min(unpacked_in(path) for _ in range(RUNS))
            found[kind.name] = {
                "megabytes": round(size),
                "pack_MB_s": round(size / packing[0], 1),
                "pack_MB_processor_s": round(size / packing[1], 1),
                "unpack_MB_s": round(size / unpacking[0], 1),
                "unpack_MB_processor_s": round(size / unpacking[1], 1),
            }
            print(f"{kind.name}: {found[kind.name]}")
    found["peak_MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    print(json.dumps(found))


def layer_bytes(kind: Kind) -> int:
    weights, size = BLOCKS[kind]
    return (3 * EXPERTS * EXPERT_WIDTH * WIDTH + 4 * WIDTH * WIDTH) // weights * size


def write(path: Path, kind: Kind, layers: int) -> None:
    """Write a Mixtral of random blocks."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(EXPERT_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_context_length(4096)
    writer.add_vocab_size(VOCABULARY)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_layer_norm_rms_eps(1e-5)

    def plain(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))

    def quantised(name: str, *shape: int) -> None:
        weights, size = BLOCKS[kind]
        count = int(np.prod(shape)) // weights
        block = random.integers(0, 256, (count, size), dtype=np.uint8)
        for at in SCALES[kind]:
            scale = random.uniform(1e-4, 2e-4, count).astype(np.float16)
            block[:, at : at + 2] = scale[:, None].view(np.uint8)
        rows = block.reshape(*shape[:-1], shape[-1] // weights * size)
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType(kind))

    plain("token_embd.weight", VOCABULARY, WIDTH)
    plain("output.weight", VOCABULARY, WIDTH)
    plain("output_norm.weight", WIDTH)
    for layer in range(layers):
        own = f"blk.{layer}."
        plain(f"{own}attn_norm.weight", WIDTH)
        plain(f"{own}ffn_norm.weight", WIDTH)
        plain(f"{own}ffn_gate_inp.weight", EXPERTS, WIDTH)
        for part in ("q", "k", "v", "output"):
            quantised(f"{own}attn_{part}.weight", WIDTH, WIDTH)
        quantised(f"{own}ffn_gate_exps.weight", EXPERTS, EXPERT_WIDTH, WIDTH)
        quantised(f"{own}ffn_up_exps.weight", EXPERTS, EXPERT_WIDTH, WIDTH)
        quantised(f"{own}ffn_down_exps.weight", EXPERTS, WIDTH, EXPERT_WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed_in(path: Path) -> tuple[float, float]:
    """Seconds of packing: wall time and processor time."""
    start, processor = time.perf_counter(), time.process_time()
    weights = SourceWeights(GGUFSource(path))
    write_packed(path.with_suffix(".mixtura"), weights, "mixtral", Precision(None, None))
    return time.perf_counter() - start, time.process_time() - processor


def unpacked_in(path: Path) -> tuple[float, float]:
    """Seconds of unpacking every tensor to fp32: wall time and processor time."""
    source = GGUFSource(path)
    start, processor = time.perf_counter(), time.process_time()
    for name in source.tensors:
        source.read(name)
    return time.perf_counter() - start, time.process_time() - processor


if __name__ == "__main__":
    main()
