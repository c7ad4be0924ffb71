import torch
from torch import Tensor

from mixtura.train.load_watch import Alarm, LoadWatch


def watch(steps: int = 1000, top_k: int = 1) -> LoadWatch:
    return LoadWatch({1: 4}, top_k=top_k, steps=steps)


def one_layer(*load: int) -> list[Tensor]:
    return [torch.tensor(load)]


def test_an_even_load_raises_nothing() -> None:
    watcher = watch()
    even = one_layer(5, 5, 5, 5)
    assert not any(watcher.add(even, step) for step in range(1, 300))


def test_starving_is_told_once_after_100_steps() -> None:
    # 100 steps give 200, 200, 200, 10; the mean is 152.5, and a tenth of it 15.25 > 10.
    watcher = watch()
    alarms = []
    for step in range(1, 131):
        few = 1 if step <= 10 else 0
        alarms += watcher.add(one_layer(2, 2, 2, few), step)
    assert alarms == [Alarm("starving", layer=1, experts=(3,), step=100, window=100)]
    assert str(alarms[0]) == (
        "step 100: layer 1, expert 3: starving, under 1/10 of an even share over the last 100 steps"
    )


def test_collapse_names_the_busiest() -> None:
    # Experts 0 and 2 take 92 of 100 rows, over 90%; none starves, as 4 is over 25 / 10.
    watcher, loads = watch(top_k=2), one_layer(46, 4, 46, 4)
    alarms = [alarm for step in range(1, 131) for alarm in watcher.add(loads, step)]
    assert alarms == [Alarm("collapsed", layer=1, experts=(0, 2), step=100, window=100)]
    assert "over 90% of rows chose expert 0, 2" in str(alarms[0])


def test_a_layer_that_no_token_chose_starves_as_a_whole() -> None:
    watcher = watch(steps=3)
    alarms = [alarm for step in (1, 2, 3) for alarm in watcher.add(one_layer(0, 0, 0, 0), step)]
    assert alarms == [Alarm("starving", layer=1, experts=(0, 1, 2, 3), step=3, window=3)]


def test_a_short_run_is_judged_at_its_end() -> None:
    watcher = watch(steps=3)
    loads = [watcher.add(one_layer(9, 9, 9, 0), step) for step in (1, 2, 3)]
    assert [len(alarms) for alarms in loads] == [0, 0, 1]
    assert loads[2][0].window == 3


def test_the_window_forgets() -> None:
    watcher = watch()
    for step in range(1, 151):
        watcher.add(one_layer(1, 0, 0, step), step)
    # Steps 51 to 150: (51 + 150) / 2 * 100 = 10050.
    assert [load_E.tolist() for load_E in watcher.total] == [[100, 0, 0, 10050]]


def test_a_restored_watch_goes_on_alike() -> None:
    first = watch()
    loads = [[torch.randint(0, 9, (4,)) * torch.tensor([1, 1, 1, 0])] for _ in range(150)]
    for step, load in enumerate(loads[:120], start=1):
        first.add(load, step)
    second = watch()
    second.restore(first.state())
    for step, load in enumerate(loads[120:], start=121):
        assert first.add(load, step) == second.add(load, step) == ()
    assert second.total[0].equal(first.total[0])


def test_layers_with_different_numbers_of_experts() -> None:
    # Layer 2 has 2 experts, evenly loaded; layer 5 has 4, of which expert 1 takes 97 of 100 rows:
    # over 90%, and the others' 1 is under 25 / 10.
    watcher = LoadWatch({2: 2, 5: 4}, top_k=1, steps=2)
    loads = [torch.tensor([50, 50]), torch.tensor([1, 97, 1, 1])]
    alarms = [alarm for step in (1, 2) for alarm in watcher.add(loads, step)]
    assert alarms == [
        Alarm("starving", layer=5, experts=(0, 2, 3), step=2, window=2),
        Alarm("collapsed", layer=5, experts=(1,), step=2, window=2),
    ]
    assert [load_E.tolist() for load_E in watcher.total] == [[100, 100], [2, 194, 2, 2]]
    restored = LoadWatch({2: 2, 5: 4}, top_k=1, steps=2)
    restored.restore(watcher.state())
    assert restored.add(loads, 3) == ()
    assert [load_E.tolist() for load_E in restored.total] == [[150, 150], [3, 291, 3, 3]]


def test_a_state_of_before_layers_could_differ() -> None:
    # Two steps of two layers with three experts each; expert 2 of layer 0 was told to starve.
    state = {
        "window_WLE": torch.tensor([[[9, 9, 0], [6, 6, 6]], [[9, 9, 0], [4, 7, 7]]]),
        "seen_starving_LE": torch.tensor([[False, False, True], [False] * 3]),
        "seen_collapsed_L": torch.tensor([False, False]),
    }
    watcher = LoadWatch({0: 3, 1: 3}, top_k=1, steps=3)
    watcher.restore(state)
    assert [load_E.tolist() for load_E in watcher.total] == [[18, 18, 0], [10, 13, 13]]
    assert watcher.add([torch.tensor([9, 9, 0]), torch.tensor([6, 6, 6])], 3) == ()


def test_a_dense_decoder_has_nothing_to_watch() -> None:
    dense = LoadWatch({}, top_k=1, steps=1)
    assert dense.add([], 1) == ()
    dense.restore(dense.state())
    assert dense.total == []
