"""A say in the routing of a step: choices given out, limited, heard and changed.

R rows, K experts per token.
"""

import copy
from dataclasses import replace

import pytest
import torch
from tests.engine.both_steps import COVERED, OTHERS, Pack, chunk, pair, together
from tests.engine.tiny_families import FAMILIES
from torch import Tensor

from mixtura.engine.program import Program
from mixtura.engine.steps import Chosen, Routes
from mixtura.errors import ConfigError
from mixtura.kernels.native import native
from mixtura.models import Decoder
from mixtura.moe import moe_layers

pytestmark = pytest.mark.skipif(native() is None, reason="no compiled kernels here")
ROWS = together(chunk(2, 0, 20), chunk(0, 0, 5))
EVERY_N = torch.arange(len(ROWS))
ONE_N = torch.tensor([7])
ROUTED = [name for name in COVERED if "moe" in {**FAMILIES, **OTHERS}[name]]


def of_program(decoder: Decoder) -> Program:
    program = pair(decoder).program
    assert isinstance(program, Program)
    return program


def with_fewer(decoder: Decoder, top_k: int) -> Decoder:
    """The same weights, whose routers choose so many."""
    fewer = copy.deepcopy(decoder)
    for layer in moe_layers(fewer):
        layer.router.shape = replace(layer.router.shape, top_k=top_k)
    return fewer


@pytest.mark.parametrize("name", ROUTED)
def test_choices_of_the_program_are_those_of_the_modules(pack: Pack, name: str) -> None:
    both = pair(pack(name))
    found, expected = Routes(), Routes()
    with torch.inference_mode():
        both.program(ROWS, "decode" if name == "gpt_oss" else "prefill", ONE_N, found)
        both.modules(ROWS, "decode" if name == "gpt_oss" else "prefill", ONE_N, expected)
    assert [one.layer for one in found.chosen] == [one.layer for one in expected.chosen]
    for one, other in zip(found.chosen, expected.chosen, strict=True):
        assert one.num_experts == other.num_experts
        # Equal scores aside, which random weights do not give.
        assert torch.equal(one.expert_RK, other.expert_RK)
        torch.testing.assert_close(one.weight_RK, other.weight_RK, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("logit_row_N", [EVERY_N, ONE_N, torch.tensor([24, 3, 3]), EVERY_N[:0]])
def test_giving_choices_out_changes_no_logit(pack: Pack, logit_row_N: Tensor) -> None:
    for name in ("qwen2_moe", "dense_first"):
        plain, heard = (of_program(pack(name)) for _ in range(2))
        expected_NV = plain(ROWS, "prefill", logit_row_N)
        assert torch.equal(heard(ROWS, "prefill", logit_row_N, Routes()), expected_NV)


def test_a_limit_is_a_router_of_so_many(pack: Pack) -> None:
    for name in ("olmoe", "sigmoid", "dbrx_squares", "groups_v3", "softmax_as_it_is"):
        decoder = pack(name)
        (first, *_) = moe_layers(decoder)
        most = first.config.top_k
        limit_R = 1 + EVERY_N % (most + 2)
        routes = Routes(limit_R)
        mixed_RV = of_program(decoder)(ROWS, "decode", EVERY_N[:0], routes)
        assert len(mixed_RV) == 0
        for chosen in routes.chosen:
            taken_R = (chosen.expert_RK < chosen.num_experts).sum(1)
            assert torch.equal(taken_R, limit_R.clamp(max=most))
        for limit in range(1, most + 1):
            of_all = Routes(torch.full((len(ROWS),), limit))
            limited_RV = of_program(decoder)(ROWS, "decode", EVERY_N, of_all)
            fewer_RV = of_program(with_fewer(decoder, limit))(ROWS, "decode", EVERY_N)
            assert torch.equal(limited_RV, fewer_RV), (name, limit)


def test_a_limit_counts_for_its_row_alone(pack: Pack) -> None:
    decoder = pack("olmoe")
    row = chunk(1, 0, 1)
    beside = together(row, chunk(2, 0, 1), chunk(3, 0, 1))
    limits = torch.tensor([1, 2, 1])
    found_RV = of_program(decoder)(beside, "decode", torch.arange(3), Routes(limits))
    alone_RV = of_program(decoder)(row, "decode", torch.arange(1), Routes(limits[:1]))
    assert torch.equal(found_RV[:1], alone_RV)


def test_what_is_called_between_hears_each_layer_and_may_change_it(pack: Pack) -> None:
    decoder = pack("qwen2_moe")
    heard: list[int] = []
    first, second = Routes(), Routes()

    def replay(chosen: Chosen) -> None:
        heard.append(chosen.layer)
        (before,) = (one for one in first.chosen if one.layer == chosen.layer)
        chosen.expert_RK.copy_(before.expert_RK)
        chosen.weight_RK.copy_(before.weight_RK)

    of_program(decoder)(ROWS, "prefill", ONE_N, first)
    for chosen in first.chosen:
        chosen.expert_RK[:, 0] = chosen.num_experts
    second.between = replay
    changed_NV = of_program(decoder)(ROWS, "prefill", ONE_N, second)
    assert heard == [one.layer for one in first.chosen]
    assert not torch.equal(changed_NV, of_program(decoder)(ROWS, "prefill", ONE_N))
    third = Routes(between=replay)
    assert torch.equal(of_program(decoder)(ROWS, "prefill", ONE_N, third), changed_NV)


def test_an_error_between_layers_ends_the_step_alone(pack: Pack) -> None:
    program, other = (of_program(pack("olmoe")) for _ in range(2))

    def fail(chosen: Chosen) -> None:
        raise KeyError(f"layer {chosen.layer}")

    with pytest.raises(KeyError, match="layer 0"):
        program(ROWS, "prefill", ONE_N, Routes(between=fail))
    expected_NV = other(ROWS, "prefill", ONE_N)
    assert torch.equal(program(ROWS, "prefill", ONE_N), expected_NV)


def test_experts_are_found_where_the_table_says(pack: Pack) -> None:
    decoder = pack("olmoe")
    program = of_program(decoder)
    expected_NV = of_program(decoder)(ROWS, "prefill", ONE_N)
    moved: list[Tensor] = []
    for number, layer in enumerate(moe_layers(decoder)):
        tiles_ES = layer.experts.tiles
        assert isinstance(tiles_ES, Tensor)
        for expert in reversed(range(len(tiles_ES))):
            moved.append(tiles_ES[expert].clone())
            program.experts[number][expert] = moved[-1].data_ptr()
    assert torch.equal(program(ROWS, "prefill", ONE_N), expected_NV)


def test_an_expert_comes_when_it_is_chosen(pack: Pack) -> None:
    decoder = pack("olmoe")
    program = of_program(decoder)
    expected_NV = of_program(decoder)(ROWS, "prefill", ONE_N)
    places = {layer: table_E.clone() for layer, table_E in program.experts.items()}

    def fetch(chosen: Chosen) -> None:
        for expert in chosen.expert_RK.unique().tolist():
            program.experts[chosen.layer][expert] = places[chosen.layer][expert]

    for table_E in program.experts.values():
        table_E.zero_()
    with pytest.raises(IndexError, match="was chosen and is not here"):
        program(ROWS, "prefill", ONE_N, Routes(between=lambda _: None))
    assert torch.equal(program(ROWS, "prefill", ONE_N, Routes(between=fetch)), expected_NV)


def test_choices_outside_the_layer_are_refused(pack: Pack) -> None:
    def outside(chosen: Chosen) -> None:
        chosen.expert_RK[3, 0] = chosen.num_experts + 1

    with pytest.raises(IndexError, match="was chosen and is not here"):
        of_program(pack("olmoe"))(ROWS, "decode", ONE_N, Routes(between=outside))
    with pytest.raises(IndexError, match="a limit of experts must be 1 or more"):
        of_program(pack("olmoe"))(ROWS, "decode", ONE_N, Routes(torch.zeros_like(EVERY_N)))


def test_modules_refuse_a_say(pack: Pack) -> None:
    modules = pair(pack("olmoe")).modules
    with pytest.raises(ConfigError, match="only the native program limits experts"):
        modules(ROWS, "decode", ONE_N, Routes(torch.ones_like(EVERY_N)))
