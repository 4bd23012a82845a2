"""The command line of a batch job: prompts by line, and flags that contradict one another."""

import shlex
from pathlib import Path

import pytest

from nodes.command import UsageError, command_line
from nodes.passwords import without_passwords
from serve.batch_cluster import plan_workers
from serve.batch_flags import Flags


def flags(**given: object) -> Flags:
    return Flags(**{"input": "in", "output": "out", **given})  # type: ignore[arg-type]


def test_prompts_come_from_the_command_line_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfblue object\r\n\n  large  green   ring \n")
    assert flags(prompt=("star",), prompts_file=file).prompts() == ["star", "blue object", "large green ring"]


def test_bad_lines_are_all_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"star\n" + b"x" * 501 + b"\n\nstar\nring\n")
    with pytest.raises(UsageError) as refused:
        flags(prompt=("ring",), prompts_file=file).prompts()
    message = str(refused.value)
    assert f"{file}, line 2: the prompt has 501 characters" in message
    assert f"{file}, line 4: the same as {file}, line 1" in message
    assert f"{file}, line 5: the same as --prompt 'ring'" in message
    assert "line 1: " not in message and "line 3" not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"star\ncaf\xe9\n", "line 2 is not UTF-8 text"),
        (b"\x89PNG\0\n", "line 1 is not UTF-8 text"),
        (b"st\0ar\n", "line 1 holds a zero byte"),
        (b"\n \n", "holds no prompts"),
    ],
)
def test_a_file_that_is_no_list_of_prompts_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=expected):
        flags(prompts_file=file).prompts()


def test_a_missing_prompts_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt cannot be read: No such file"):
        flags(prompts_file=tmp_path / "none.txt").prompts()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "nothing to look for: give --prompt"),
        ({"prompt": ("star",), "classifier": Path("best")}, "--prompt is for segmenting"),
        ({"overlays": True, "classifier": Path("best")}, "--overlays is for segmenting"),
        ({"threshold": 0.3, "classifier": Path("best")}, "--threshold is for segmenting"),
        ({"refine": False, "classifier": Path("best")}, "--no-refine is for segmenting"),
        ({"max_instances": 3, "classifier": Path("best")}, "--max-instances is for segmenting"),
        ({"preset": "tiny", "classifier": Path("best")}, "--preset is for segmenting"),
        ({"prompt": ("star",), "top_k": 3}, "--top-k is for classifying; it needs --classifier"),
        ({"prompt": ("star",), "batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"prompt": ("star",), "gpus_per_worker": -0.5}, "--gpus-per-worker must be at least 0"),
        ({"prompt": ("star",), "max_pixels": 10**9}, "--max-pixels must be at most"),
        ({"prompt": ("star",), "input": ""}, "INPUT is empty"),
        ({"prompt": ("star",), "output": ""}, "--output is empty"),
    ],
)
def test_flags_that_cannot_be_met_are_refused(given: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        flags(**given)


@pytest.mark.parametrize(
    ("given", "name"), [({"threshold": 1.5}, "threshold"), ({"max_instances": 0}, "max_instances")]
)
def test_options_out_of_range_are_refused(given: dict[str, object], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        flags(prompt=("star",), **given).options()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://AKIA:secret@bucket/x?region=eu", "s3://AKIA:***@bucket/x?region=eu"),
        ("s3://AKIA:sec/ret+/k=@bucket/x", "s3://AKIA:***@bucket/x"),
        ("ftp://me:s@c/r:t@host:21/x", "ftp://me:***@host:21/x"),
        ("ftp://:secret@host/x", "ftp://:***@host/x"),
        ("s3://bucket/a@2x/b.png", "s3://bucket/a@2x/b.png"),
        ("http://me@host:8080/x", "http://me@host:8080/x"),
        ("photos:old/a@2x", "photos:old/a@2x"),
        ("https://a.net/x?sp=r&sig=b%2Fc", "https://a.net/x?sp=r&sig=***"),
        (
            "https://a.net/x?X-Amz-Security-Token=b&X-Amz-Signature=c",
            "https://a.net/x?X-Amz-Security-Token=***&X-Amz-Signature=***",
        ),
        ("https://a.net/x?design=b&v=1", "https://a.net/x?design=b&v=1"),
    ],
)
def test_passwords_in_urls_are_neither_shown_nor_kept(url: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_passwords(url) == expected
    assert without_passwords(f"there is no {url!r} or {url}") == f"there is no {expected!r} or {expected}"
    monkeypatch.setattr("sys.argv", ["batch.py", url, f"--output={url}"])
    assert shlex.split(command_line())[2:] == [expected, f"--output={expected}"]


def test_shares_of_a_gpu_are_all_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 2)
    asked = flags(prompt=("star",), gpus_per_worker=0.2, cpus_per_worker=1)
    assert plan_workers(asked, num_shards=100).number == 10
