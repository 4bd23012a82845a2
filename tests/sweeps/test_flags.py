import dataclasses
import sys

import pytest

from nodes.command import UsageError
from sweeps.flags import Flags, parse, parse_choices, parse_overrides


def parse_words(monkeypatch: pytest.MonkeyPatch, *words: str) -> Flags:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
    return parse("A question?", "sweep.py")


def test_the_flags_are_those_promised() -> None:
    """Scripts rely on these names: renaming one is a breaking change."""
    assert {field.name for field in dataclasses.fields(Flags)} == {
        *("dataset", "data_root", "num_samples", "seeds", "budget", "epochs", "search", "scheduler", "set"),
        *("cpus_per_trial", "gpus_per_trial", "address", "storage", "name", "resume", "smoke", "study_url"),
        *("mlflow_url", "vary", "search_seed", "first_seed", "finish"),
    }


def test_flags_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = parse_words(
        monkeypatch, "--budget", "2e14", "--search", "optuna", "--set", "depth=9", "precision=float32", "--smoke"
    )
    assert flags.budget == 2e14
    assert flags.search == "optuna"
    assert parse_overrides(flags.set) == {"depth": 9, "precision": "float32"}
    assert flags.smoke
    assert parse_words(monkeypatch).set == ()


def test_set_and_vary_may_be_repeated_but_no_name_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = parse_words(monkeypatch, "--set", "a=1", "b=2", "--vary", "d=1,2", "--set", "c=3", "--vary", "e=4", "f=5")
    assert (flags.set, flags.vary) == (("a=1", "b=2", "c=3"), ("d=1,2", "e=4", "f=5"))
    with pytest.raises(UsageError, match="--set drop_path_rate is given twice"):
        parse_overrides(("drop-path-rate=0.1", "drop_path_rate=0.2"))
    with pytest.raises(UsageError, match="--vary depth is given twice"):
        parse_choices(("depth=2", "depth=3"))
    for alike in ("learning_rate=1e-3,0.001", "flip=true,True"):
        with pytest.raises(UsageError, match="with different values"):
            parse_choices((alike,))
    assert parse_choices(("flip=true,1",)) == {"flip": (True, 1)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus", "1"], "Unrecognized options"),
        (["--dataset", "mnist"], "cifar100"),
        (["--budget", "plenty"], "--budget"),
        (["--budget", "1e12", "--epochs", "3"], "--budget and --epochs"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--budget", "-1"], "--budget must be a positive number"),
        (["--cpus-per-trial", "0"], "--cpus-per-trial must be at least 1"),
        (["--first-seed", "-1"], "--first-seed must be at least 0"),
        (["--name", "a/b"], "--name must be a plain folder name"),
    ],
)
def test_mistakes_exit_2_and_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_words(monkeypatch, *words)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert message in output.out + output.err


def test_choices_are_typed_and_checked() -> None:
    assert parse_choices(("a=1,2", "b=x", "drop-path-rate=none,0.1")) == {
        "a": (1, 2),
        "b": ("x",),
        "drop_path_rate": (None, 0.1),
    }
    for bad in ("depth", "=3,4", "depth=", "depth=3,,4", "depth=3,3"):
        with pytest.raises(UsageError, match=r"--vary takes NAME=A,B,.* with different values"):
            parse_choices((bad,))


def test_overrides_are_typed_and_checked() -> None:
    assert parse_overrides(("a=1", "b=2.5", "c=true", "d=none", "e=mean")) == {
        "a": 1,
        "b": 2.5,
        "c": True,
        "d": None,
        "e": "mean",
    }
    for bad in ("depth", "=3", "depth="):
        with pytest.raises(UsageError, match="--set takes NAME=VALUE"):
            parse_overrides((bad,))
