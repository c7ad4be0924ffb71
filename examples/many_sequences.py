"""Generate many sequences in a changing batch: a tiny model with random weights, in a second."""

import torch

from mixtura import Decoder, DecoderConfig
from mixtura.engine.cache_plan import CachePlan
from mixtura.engine.continuous_batch import ContinuousBatch
from mixtura.engine.runner import Runner
from mixtura.engine.sampling import Sampling

torch.manual_seed(0)
config = DecoderConfig.parse(
    {
        "layers": 2,
        "width": 32,
        "vocabulary": 257,
        "context": 128,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 8},
        "moe": {"num_experts": 8, "top_k": 2, "expert_width": 32},
    }
)
decoder = Decoder(config).eval()

plan = CachePlan(config, slots=3, context=96, kind="int8")
print(f"the cache takes {plan.bytes:,} bytes")
batch = ContinuousBatch(Runner(decoder, plan))

waiting = [b"Once upon a time", b"def main():", b"The capital of", b"1, 2, 3,"]
while waiting or batch.running:
    while waiting and len(batch.running) < plan.slots:
        number = len(waiting)
        batch.add(list(waiting.pop(0)), Sampling(seed=number), max_tokens=8 * number)
    for one in batch.advance():
        if one.finish is not None:
            print(bytes(one.prompt), one.finish, one.tokens)
