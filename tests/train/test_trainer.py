"""T tokens; a tiny decoder on a few kB of text."""

from math import log2

import pytest
import torch
import torch.nn.functional as F

from mixtura.data import Batch, Batches, Corpus
from mixtura.runs import Recipe
from mixtura.train import Trainer, build_decoder, build_trainer


def losses_of(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.step().loss for _ in range(steps)]


def test_the_first_loss_is_the_decoders_cross_entropy(make_recipe, corpus: Corpus) -> None:
    recipe = make_recipe()
    batch = Batches(corpus.train, batch=4, length=16, seed=0).at(0)
    decoder = build_decoder(recipe.model, seed=0)
    logits_BSV = decoder(batch.tokens_BS).logits_BSV
    expected = F.cross_entropy(logits_BSV.flatten(0, 1), batch.targets_BS.flatten())
    report = build_trainer(recipe, corpus).step()
    assert report.loss == pytest.approx(expected.item())
    assert report.step == 1
    assert report.tokens == 4 * 16
    # Each of 64 tokens chooses 2 experts, in each of 2 layers.
    assert [sum(load_E) for load_E in report.load] == [128, 128]
    assert set(report.losses) == {"balance", "z"}
    assert report.tokens_per_second == 64 / report.seconds


def test_it_learns(make_recipe, corpus: Corpus) -> None:
    trainer = build_trainer(make_recipe("train.steps=60", "train.lr=0.02"), corpus)
    before = trainer.evaluate()
    losses_of(trainer, 60)
    assert trainer.evaluate() < 0.6 * before


def test_the_rate_follows_the_schedule(make_recipe, corpus: Corpus) -> None:
    # 2 steps of warm-up to 1e-3: 0.5e-3, then 1e-3.
    trainer = build_trainer(make_recipe(), corpus)
    assert [trainer.step().learning_rate for _ in range(2)] == [0.5e-3, 1e-3]


def test_bits_per_byte_of_a_decoder_that_knows_nothing(make_recipe, corpus: Corpus) -> None:
    trainer = build_trainer(make_recipe("train.eval_tokens=100000"), corpus)
    torch.nn.init.zeros_(trainer.decoder.head.weight)
    # All 257 tokens are as likely: log2(257) bits each, the ends of documents too.
    batches = list(trainer.heldout())
    targets = sum(batch.targets_BS.numel() for batch in batches)
    text_bytes = sum(batch.text_bytes for batch in batches)
    assert text_bytes < targets
    assert trainer.evaluate() == pytest.approx(log2(257) * targets / text_bytes)


def test_evaluation_leaves_training_as_it_is(make_recipe, corpus: Corpus) -> None:
    switch = make_recipe("model.moe.router={kind: switch, jitter: 0.5}", "model.moe.top_k=1")
    plain, evaluated = build_trainer(switch, corpus), build_trainer(switch, corpus)
    interleaved = []
    for _ in range(3):
        evaluated.evaluate()
        interleaved.append(evaluated.step().loss)
    assert interleaved == losses_of(plain, 3)


def test_two_trainers_take_turns_without_disturbing_each_other(make_recipe, corpus: Corpus) -> None:
    # Switch draws noise at each step, from a state of its own trainer.
    switch = make_recipe("model.moe.router={kind: switch, jitter: 0.5}", "model.moe.top_k=1")
    alone = losses_of(build_trainer(switch, corpus), 3)
    first, second = build_trainer(switch, corpus), build_trainer(switch, corpus)
    torch.manual_seed(7)
    outside = torch.get_rng_state()
    turns = [(first.step().loss, second.step().loss) for _ in range(3)]
    assert turns == [(loss, loss) for loss in alone]
    assert torch.get_rng_state().equal(outside)


class InParts:
    """The batches of `whole`, cut into `parts` of as many sequences each."""

    def __init__(self, whole: Batches, parts: int) -> None:
        self.whole, self.parts = whole, parts

    def at(self, step: int) -> Batch:
        number, part = divmod(step, self.parts)
        batch = self.whole.at(number)
        size = batch.tokens_BS.shape[0] // self.parts
        rows = slice(part * size, (part + 1) * size)
        return Batch(batch.tokens_BS[rows], batch.targets_BS[rows], batch.domains_BS[rows], 0)


def gradients_after_a_step(recipe: Recipe, batches: Batches | InParts) -> dict[str, torch.Tensor]:
    decoder = build_decoder(recipe.model, recipe.train.seed)
    Trainer(recipe.train, decoder, batches, heldout=lambda: ()).step()
    return {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_accumulation_gives_the_gradients_of_a_larger_batch(
    make_recipe, corpus: Corpus, clip: str
) -> None:
    balance = "model.moe.balance={scope: sequence, loss: 1.0, z_loss: 1.0}"
    whole = Batches(corpus.train, batch=8, length=16, seed=0)
    large = make_recipe(balance, f"train.clip={clip}", "train.batch=8")
    small = make_recipe(balance, f"train.clip={clip}", "train.batch=2", "train.accumulation=4")
    expected = gradients_after_a_step(large, whole)
    found = gradients_after_a_step(small, InParts(whole, 4))
    assert expected.keys() == found.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7, msg=name)


def test_accumulation_reports_the_whole_step(make_recipe, corpus: Corpus) -> None:
    whole = Batches(corpus.train, batch=8, length=16, seed=0)
    large, small = (
        make_recipe("train.batch=8"),
        make_recipe("train.batch=2", "train.accumulation=4"),
    )
    reports = [
        Trainer(r.train, build_decoder(r.model, 0), batches, heldout=lambda: ()).step()
        for r, batches in ((large, whole), (small, InParts(whole, 4)))
    ]
    assert reports[0].tokens == reports[1].tokens == 128
    assert reports[0].load == reports[1].load
    assert reports[1].loss == pytest.approx(reports[0].loss)
    assert reports[1].losses == pytest.approx(reports[0].losses)
    assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-4)


def test_clipping_bounds_the_norm_of_all_gradients(make_recipe, corpus: Corpus) -> None:
    trainer = build_trainer(make_recipe("train.clip=0.01"), corpus)
    report = trainer.step()
    grads = [p.grad for p in trainer.decoder.parameters() if p.grad is not None]
    assert report.grad_norm > 0.01
    assert torch.nn.utils.get_total_norm(grads).item() == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_keeps_weights_and_moments_in_fp32(make_recipe, corpus: Corpus) -> None:
    low = build_trainer(make_recipe("train.dtype=bfloat16"), corpus)
    full = build_trainer(make_recipe(), corpus)
    low_loss, full_loss = low.step().loss, full.step().loss
    # bf16 has 8 bits: near, but not the same.
    assert low_loss != full_loss
    assert low_loss == pytest.approx(full_loss, rel=0.02)
    state = low.state()
    tensors = [*state.model.values(), *state.optimizer.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_dropped_share(make_recipe, corpus: Corpus) -> None:
    # A factor of 0.25 leaves each of 4 experts ceil(0.25 * 32 / 4) = 2 of a sequence's 32 rows, so
    # at most 8 are computed and at least 24/32 are dropped.
    recipe = make_recipe("model.moe.capacity={policy: drop, factor: 0.25}")
    assert all(share >= 0.75 for share in build_trainer(recipe, corpus).step().dropped)
    assert build_trainer(make_recipe(), corpus).step().dropped == [0.0, 0.0]


def test_a_dense_decoder_trains(make_recipe, corpus: Corpus) -> None:
    trainer = build_trainer(make_recipe("model.moe=null", "model.ffn_width=32"), corpus)
    report = trainer.step()
    assert (report.load, report.dropped, report.losses) == ([], [], {})
    assert trainer.recent_load == []


def test_only_the_moe_layers_report_load(make_recipe, corpus: Corpus) -> None:
    recipe = make_recipe("model.moe.placement={only: [1]}", "model.ffn_width=32")
    trainer = build_trainer(recipe, corpus)
    assert trainer.moe_layers == [1]
    assert len(trainer.step().load) == 1


def test_a_restored_trainer_goes_on_bit_for_bit(make_recipe, corpus: Corpus) -> None:
    recipe = make_recipe(
        "model.moe.router={kind: switch, jitter: 0.5}",
        "model.moe.top_k=1",
        "train.accumulation=2",
    )
    first = build_trainer(recipe, corpus)
    losses_of(first, 3)
    second = build_trainer(recipe, corpus)
    second.restore(first.state())
    ours, theirs = [[t.step() for _ in range(3)] for t in (first, second)]
    assert [(r.step, r.loss, r.losses, r.grad_norm, r.load) for r in ours] == [
        (r.step, r.loss, r.losses, r.grad_norm, r.load) for r in theirs
    ]
    assert first.tokens_done == second.tokens_done == 6 * 2 * 64


def test_a_choosing_bias_moves_with_each_step(make_recipe, corpus: Corpus) -> None:
    recipe = make_recipe(
        "model.moe.router={kind: sigmoid_topk}", "model.moe.balance.bias_rate=0.25"
    )
    trainer = build_trainer(recipe, corpus)
    report = trainer.step()
    for layer, load_E in enumerate(report.load):
        # Up by the rate below the mean load of 128 / 4 = 32, down by it above.
        expected = [0.25 * ((load < 32) - (load > 32)) for load in load_E]
        bias_E = trainer.decoder.state_dict()[f"blocks.{layer}.ffn.router.bias"]
        assert bias_E.tolist() == expected
