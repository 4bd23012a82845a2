"""docs/scaling.md says what its records and its model say."""

import dataclasses

import pytest

from benchmarks.scaling_model import (
    PAGE,
    Assumptions,
    Measured,
    batch_model,
    shards_of,
    sweep_model,
    tables,
    with_tables,
)

CONSTANTS = Measured(
    trial_s=0.1,
    report_s=0.02,
    snapshot_bytes=9000,
    listing_s=2e-5,
    reads_a_picture=2,
    reads_a_shard=12,
    writes_a_shard=8,
    requests_per_second=300,
)


def test_the_tables_are_those_of_the_records() -> None:
    page = PAGE.read_text()
    assert with_tables(page, tables()) == page
    assert with_tables(page, {"trials": "another table"}) != page


@pytest.mark.parametrize(("pictures", "shards"), [(1, 1), (33, 9), (512, 16), (3200, 100)])
def test_shards_are_counted_as_they_are_cut(pictures: int, shards: int) -> None:
    assert shards_of(pictures) == shards


def test_a_hundred_million_pictures_are_about_a_hundred_thousand_shards() -> None:
    assert 90_000 < shards_of(100_000_000) < 120_000


def test_the_model_follows_its_constants() -> None:
    a = Assumptions()
    sweep = {name: value for name, value, _ in sweep_model(a, CONSTANTS)}
    assert sweep["shortest trial that keeps all GPUs busy"] == "260 s"  # 1000 x (0.1 + 8 x 0.02)
    assert sweep["driver busy"] == "7.2%"  # of an hour's trial
    slower = {name: value for name, value, _ in sweep_model(a, dataclasses.replace(CONSTANTS, trial_s=0.2))}
    assert slower["shortest trial that keeps all GPUs busy"] == "360 s"
    batch = {name: value for name, value, _ in batch_model(a, CONSTANTS, 100_000)}
    assert batch["time on the GPUs"] == "33 minutes"  # 1e8 / (1000 x 50) s
    assert batch["listing before the first picture"] == "33 minutes"  # 1e8 x 20 µs
    assert batch["read from storage"] == "10 TB"
    assert batch["storage operations"] == "202.0 million"  # 2 x 1e8 + (12 + 8) x 1e5
