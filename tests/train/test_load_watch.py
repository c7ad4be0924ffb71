import torch

from mixtura.train.load_watch import Alarm, LoadWatch


def watch(steps: int = 1000, top_k: int = 1) -> LoadWatch:
    return LoadWatch(layers=[1], num_experts=4, top_k=top_k, steps=steps)


def test_an_even_load_raises_nothing() -> None:
    watcher = watch()
    even_LE = torch.tensor([[5, 5, 5, 5]])
    assert not any(watcher.add(even_LE, step) for step in range(1, 300))


def test_starving_is_told_once_after_100_steps() -> None:
    # 100 steps give 200, 200, 200, 10; the mean is 152.5, and a tenth of it 15.25 > 10.
    watcher = watch()
    alarms = []
    for step in range(1, 131):
        few = 1 if step <= 10 else 0
        alarms += watcher.add(torch.tensor([[2, 2, 2, few]]), step)
    assert alarms == [Alarm("starving", layer=1, experts=(3,), step=100, window=100)]
    assert str(alarms[0]) == (
        "step 100: layer 1, expert 3: starving, under 1/10 of an even share over the last 100 steps"
    )


def test_collapse_names_the_busiest() -> None:
    # Experts 0 and 2 take 92 of 100 rows, over 90%; none starves, as 4 is over 25 / 10.
    watcher, load_LE = watch(top_k=2), torch.tensor([[46, 4, 46, 4]])
    alarms = [alarm for step in range(1, 131) for alarm in watcher.add(load_LE, step)]
    assert alarms == [Alarm("collapsed", layer=1, experts=(0, 2), step=100, window=100)]
    assert "over 90% of rows chose expert 0, 2" in str(alarms[0])


def test_a_short_run_is_judged_at_its_end() -> None:
    watcher = watch(steps=3)
    loads = [watcher.add(torch.tensor([[9, 9, 9, 0]]), step) for step in (1, 2, 3)]
    assert [len(alarms) for alarms in loads] == [0, 0, 1]
    assert loads[2][0].window == 3


def test_the_window_forgets() -> None:
    watcher = watch()
    for step in range(1, 151):
        watcher.add(torch.tensor([[1, 0, 0, step]]), step)
    # Steps 51 to 150: (51 + 150) / 2 * 100 = 10050.
    assert watcher.total_LE.tolist() == [[100, 0, 0, 10050]]


def test_a_restored_watch_goes_on_alike() -> None:
    first = watch()
    loads = [torch.randint(0, 9, (1, 4)) * torch.tensor([1, 1, 1, 0]) for _ in range(150)]
    for step, load_LE in enumerate(loads[:120], start=1):
        first.add(load_LE, step)
    second = watch()
    second.restore(first.state())
    for step, load_LE in enumerate(loads[120:], start=121):
        assert first.add(load_LE, step) == second.add(load_LE, step) == ()
    assert second.total_LE.equal(first.total_LE)


def test_a_dense_decoder_has_nothing_to_watch() -> None:
    dense = LoadWatch(layers=[], num_experts=1, top_k=1, steps=1)
    assert dense.add(torch.zeros(0, 1, dtype=torch.int64), 1) == ()
