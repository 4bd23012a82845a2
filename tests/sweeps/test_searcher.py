import optuna
from optuna.distributions import CategoricalDistribution

from sweeps.searcher import DistinctOptunaSearch


def test_no_setting_is_suggested_twice_though_one_is_far_better() -> None:
    space = {"a": CategoricalDistribution([1, 2, 3, 4]), "b": CategoricalDistribution(["x", "y", "z"])}
    sampler = optuna.samplers.TPESampler(seed=0)
    searcher = DistinctOptunaSearch(space, metric="score", mode="max", sampler=sampler)
    seen = []
    for number in range(12):
        setting = searcher.suggest(str(number))
        assert setting is not None
        seen.append((setting["a"], setting["b"]))
        searcher.on_trial_complete(str(number), {"score": float(seen[-1] == (2, "y"))})
    assert len(set(seen)) == 12
