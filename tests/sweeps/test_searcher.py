import optuna
import pytest

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


def test_so_many_trials_are_unknown_to_optuna_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DistinctOptunaSearch, "at_once", 2)
    space = {"a": Choice((1, 2, 3, 4))}
    for by_first_report in (False, True):
        searcher = DistinctOptunaSearch(
            space, by_first_report=by_first_report, metric="score", mode="max", sampler=None
        )
        assert searcher.suggest("x") is not None and searcher.suggest("y") is not None
        assert searcher.suggest("z") is None
        searcher.on_trial_result("x", {"score": 0.5, "training_iteration": 1})
        assert (searcher.suggest("z") is not None) == by_first_report
        searcher.on_trial_complete("x", {"score": 0.7})
        searcher.on_trial_complete("y", error=True)
        assert searcher.suggest("v") is not None
        assert [trial.value for trial in searcher._study.trials[:2]] == [0.5 if by_first_report else 0.7, None]
