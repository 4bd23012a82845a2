import optuna

from sweeps.searcher import DistinctOptunaSearch
from sweeps.space import Choice


def test_no_setting_is_suggested_twice_though_one_is_far_better() -> None:
    space = {"a": Choice((4, 1, 3, 2)), "b": Choice(("x", "y", "z"))}
    sampler = optuna.samplers.TPESampler(seed=0)
    searcher = DistinctOptunaSearch(space, metric="score", mode="max", sampler=sampler)
    seen = []
    for number in range(12):
        setting = searcher.suggest(str(number))
        assert setting is not None
        seen.append((setting["a"], setting["b"]))
        searcher.on_trial_complete(str(number), {"score": float(seen[-1] == (2, "y"))})
    assert len(set(seen)) == 12


def test_numbers_to_choose_from_are_searched_near_the_best_ones() -> None:
    rates = tuple(1e-4 * 2**step for step in range(16))
    best = rates[11]
    found = []
    for seed in range(10):
        searcher = DistinctOptunaSearch(
            {"rate": Choice(rates[::-1]), "size": Choice((8, 4, 16))},
            metric="score",
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        for number in range(20):  # of 48
            setting = searcher.suggest(str(number))
            assert setting is not None and setting["rate"] in rates and setting["size"] in (4, 8, 16)
            distance = abs(rates.index(setting["rate"]) - rates.index(best)) + abs(setting["size"] - 8) / 4
            searcher.on_trial_complete(str(number), {"score": -distance})
            if distance == 0:
                found.append(seed)
    assert len(found) >= 9  # 6 where Optuna is told nothing of their order
