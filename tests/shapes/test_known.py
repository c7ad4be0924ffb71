"""Known names: exact counts of published configs."""

import json
import re
from pathlib import Path

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes import DecoderShape, known
from mixtura.shapes.known import known_names, known_shape

# Total, active A, active B, one expert, and of one layer the router and the attention, its norms
# included. The sums of one of them, Mixtral-8x7B: an expert 3 * 4096 * 14336 = 176,160,768; a
# router 8 * 4096; attention 4096 * (4096 + 2 * 1024) + 4096 * 4096 = 41,943,040; so in all
# 32 * (8 * 176,160,768 + 32,768 + 41,943,040 + 2 * 4096) + 2 * 32,000 * 4096 + 4096.
EXACT = {
    "mixtral-8x7b": (
        46_702_792_704,
        12_879_925_248,
        12_748_853_248,
        176_160_768,
        32_768,
        41_943_040,
    ),
    "dbrx": (131_596_523_520, 36_469_708_800, 35_853_146_112, 198_180_864, 98_304, 88_080_384),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1_178_994_688, 6_291_456, 131_072, 16_781_312),
    "deepseek-v3": (
        671_026_404_352,
        37_552_282_624,
        36_625_603_584,
        44_040_192,
        1_835_008,
        187_107_328,
    ),
}
# Billions as their makers print them: total, and active in the convention that they count by;
# `hidden` counts neither embedding nor head, in both.
PRINTED: dict[str, tuple[str, str | None, str | None]] = {
    "mixtral-8x7b": ("46.7", "12.9", "A"),
    "mixtral-8x22b": ("141", "39", "A"),
    "dbrx": ("132", "36", "A"),
    "olmoe-1b-7b": ("6.9", "1.3", "A"),
    "deepseek-v2": ("236", "21", "A"),
    "deepseek-v2-lite": ("15.7", "2.5", "B"),
    "deepseek-v3": ("671", "37", "B"),
    "qwen1.5-moe-a2.7b": ("14.3", "2.7", "A"),
    "qwen3-30b-a3b": ("30.5", None, None),
    "qwen3-235b-a22b": ("235", "22", "A"),
    "qwen3-next-80b-a3b": ("79", "3", "hidden"),
    "qwen3.6-35b-a3b": ("35", "3", "B"),
    # A trillion.
    "kimi-k2": ("1T", "32", "B"),
    "moonlight-16b-a3b": ("15.29", "2.24", "hidden"),
    "glm-4.5-air": ("106", "12", "hidden"),
    # The hub's count; its makers print 230.
    "minimax-m2": ("229", "10", "B"),
    # Its 3 billion active count neither embedding nor head.
    "glm-4.7-flash": ("30", None, None),
    "gpt-oss-20b": ("20.91", "3.61", "B"),
    "gpt-oss-120b": ("116.83", "5.13", "B"),
    "phi-3.5-moe": ("41.9", "6.6", "A"),
    "granite-3.0-1b-a400m": ("1.3", "0.4", "A"),
    "granite-3.0-3b-a800m": ("3.3", "0.9", "A"),
    # Its maker prints 1.5 active, and counts 1.56 of convention A down.
    "lfm2-8b-a1b": ("8.3", None, None),
    "llama-3.1-8b": ("8.03", None, None),
    "qwen3-0.6b": ("0.6", None, None),
    "smollm2-135m": ("0.135", None, None),
}


@pytest.mark.parametrize("name", EXACT)
def test_published_counts_exactly(name: str) -> None:
    shape = known_shape(name)
    layer = max(shape.moe_shapes)
    found = (
        shape.total_parameters(),
        shape.active_parameters("A"),
        shape.active_parameters("B"),
        of_layer(shape, f"blocks.{layer}.ffn.experts.") // shape.moe_shapes[layer].num_experts,
        of_layer(shape, f"blocks.{layer}.ffn.router."),
        of_layer(shape, f"blocks.{layer}.attention."),
    )
    assert found == EXACT[name]


def of_layer(shape: DecoderShape, prefix: str) -> int:
    return sum(weight.parameters for weight in shape.weights() if weight.name.startswith(prefix))


def test_lfm2_exactly() -> None:
    # An expert 3 * 2048 * 1792; a short convolution 4 * 2048^2 for both projections and 3 * 2048
    # taps; attention 2048 * (2 * 2048 + 2 * 512) and two norms of 64.
    width, expert, conv = 2048, 11_010_048, 4 * 2048**2 + 3 * 2048
    attention = width * (2 * 2048 + 2 * 512) + 2 * 64
    mixers, table = 18 * conv + 6 * attention, 65_536 * width
    dense, norms = 2 * 3 * width * 7168, (2 * 24 + 1) * width
    routers = 22 * 32 * width
    shape = known_shape("lfm2-8b-a1b")
    rest = mixers + dense + norms + routers + table
    assert shape.total_parameters() == 22 * 32 * expert + rest == 8_339_929_856
    assert shape.active_parameters("A") == 22 * 4 * expert + rest == 1_557_740_288


def test_deepseek_v2_exactly() -> None:
    v2, lite = known_shape("deepseek-v2"), known_shape("deepseek-v2-lite")
    assert (v2.total_parameters(), v2.active_parameters()) == (235_741_434_880, 21_375_800_320)
    assert (lite.total_parameters(), lite.active_parameters()) == (15_706_484_224, 2_661_150_208)


@pytest.mark.parametrize("name", known_names())
def test_totals_as_printed(name: str) -> None:
    shape = known_shape(name)
    total, active, convention = PRINTED[name]
    outer = 2 * shape.vocabulary * shape.width if convention == "hidden" else 0
    assert rounded(shape.total_parameters() - outer, total) == total
    if convention == "hidden":
        assert rounded(shape.active_parameters() - outer, active or "") == active
    elif active is not None:
        assert convention == "A" or convention == "B"
        assert rounded(shape.active_parameters(convention), active) == active


def rounded(parameters: int, printed: str) -> str:
    """Billions, or trillions before a T, in as many digits as are printed."""
    if printed.endswith("T"):
        return rounded(parameters // 1000, printed[:-1]) + "T"
    return f"{parameters / 1e9:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize("name", known_names())
def test_the_size_in_a_name(name: str) -> None:
    # Names round: within 5% of the size, or half a unit of its last digit where that is more. What
    # follows an `a` is active, and 8x7b is no total; of two sizes (1b-7b) the last is the total.
    sizes = re.findall(r"(?<=-)(\d+)(\.\d+)?([bm])(?![a-z0-9])", name)
    if not sizes:
        return
    whole, digits, unit = sizes[-1]
    size = float(whole + digits) * {"b": 1e9, "m": 1e6}[unit]
    step = {"b": 1e9, "m": 1e6}[unit] / 10 ** max(len(digits) - 1, 0)
    total = known_shape(name).total_parameters()
    assert abs(total - size) <= max(0.05 * size, step / 2)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'Mixtral-8x7' is no model .* nearest are mixtral-8x7b"):
        known_shape("Mixtral-8x7")
    with pytest.raises(ConfigError, match=r"'zzz' .* known are dbrx, .*smollm2-135m"):
        known_shape("zzz")


def test_a_path_is_no_known_name() -> None:
    with pytest.raises(ConfigError, match=r"'\.\./known/dbrx' is no model"):
        known_shape("../known/dbrx")


@pytest.mark.parametrize("name", known_names())
def test_a_known_file_says_where_its_config_is_from(name: str) -> None:
    file = json.loads(Path(known.__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    assert file.keys() == {"repository", "revision", "config"}
    owner, _, model = file["repository"].partition("/")
    assert owner
    assert model.lower().startswith(name)
    assert file["revision"] is None or re.fullmatch("[0-9a-f]{40}", file["revision"])
