"""Listings: what is taken for a picture, in which order, how it is cut, and what is refused."""

import itertools
import os
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_support import scene_png, write_hub_parquet

from nodes.command import UsageError
from serve.batch_input import Item, cut, find_input, why_empty, without_output
from serve.batch_storage import Store, is_same, resolve


def names(url: str | Path, **how: bool) -> list[str]:
    return [os.fsdecode(item.path) for group in find_input(str(url), **how).groups() for item in group]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in two folders, one of them twice under one name, and much that is none."""
    root = tmp_path / "in [1]"  # brackets that are no glob
    for place in ("b", "a/deep", ".hidden"):
        (root / place).mkdir(parents=True)
    for name in (
        "b/2.PNG",
        "b/10.jpeg",
        "a/deep/2.png",
        "z.webp",
        "notes.txt",
        "b/table.csv",
        "._z.webp",
        ".hidden/1.png",
    ):
        (root / name).write_bytes(b"-")
    return root


def test_a_folder_is_listed_sorted_and_deep_without_hidden_or_other_files(folder: Path) -> None:
    source = find_input(str(folder))
    listed = [item for group in source.groups() for item in group]
    assert [item.path.decode() for item in listed] == ["a/deep/2.png", "b/10.jpeg", "b/2.PNG", "z.webp"]
    assert {item.size for item in listed} == {1}
    assert source.left_out == {".txt": 1, ".csv": 1}
    assert names(folder, recursive=False) == ["z.webp"]
    assert names(f"file://{folder}") == names(folder)


def test_links_are_followed_but_never_in_a_circle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(b"-")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    (folder / "near.png").symlink_to(folder / "z.webp")
    os.mkfifo(folder / "pipe.png")
    (folder / "to-pipe.png").symlink_to("pipe.png")
    listed = {os.fsdecode(i.path): i.size for g in find_input(str(folder)).groups() for i in g}
    assert listed["linked/far.png"] == 1 and listed["near.png"] == 1
    assert listed["dangling.png"] == -1  # to be reported
    assert not {"pipe.png", "to-pipe.png"} & set(listed)  # opening them would wait for ever
    assert not any(name.startswith("a/up") for name in listed)
    root = folder.rename(folder.with_name("plain"))
    (root / "near.png").unlink()
    globbed = {os.fsdecode(i.path): i.size for g in find_input(f"{root}/*").groups() for i in g}
    assert globbed == {"dangling.png": -1, "notes.txt": 1, "z.webp": 1}
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        find_input(str(root / "pipe.png"))


def test_names_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"-")
    (items,) = find_input(str(tmp_path)).groups()
    assert items[0].path == b"caf\xe9.png"


def test_a_glob_takes_what_it_matches_and_one_file_is_a_listing(folder: Path) -> None:
    root = folder.rename(folder.with_name("plain"))
    assert names(root / "b" / "*") == ["10.jpeg", "2.PNG", "table.csv"]
    assert names(root / "**" / "2.*") == ["a/deep/2.png", "b/2.PNG"]
    assert names(root / "z.webp") == ["z.webp"]


def test_a_glob_follows_links_and_passes_hidden_names_by_as_a_folder_does(folder: Path, tmp_path: Path) -> None:
    root = folder.rename(folder.with_name("plain"))
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "far.png").write_bytes(b"-")
    (tmp_path / "elsewhere" / "deep" / "farther.png").write_bytes(b"-")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    assert names(root / "**" / "*.png") == ["a/deep/2.png", "linked/deep/farther.png", "linked/far.png"]
    assert names(root / "*" / "*.png") == ["linked/far.png"]
    assert sorted({*names(root / "**"), *names(root / "**" / "**" / "*")} - set(names(root))) == [
        "b/table.csv",
        "notes.txt",
    ]
    assert names(root / ".h*" / "*") == [".hidden/1.png"]
    assert names(root / "**" / "deep" / "**" / "[!x]*.p?g") == ["a/deep/2.png", "linked/deep/farther.png"]


@pytest.mark.parametrize("place", ["{}", "memory://{}"])
def test_what_a_job_writes_is_no_input_of_its_next_run(folder: Path, place: str) -> None:
    root = place.format(folder.rename(folder.with_name("plain")))
    fs, path = resolve(root)
    for name in ("b/2.png", "b/out/overlays/part-000000/2.jpg", "b/out-of-this/3.png"):
        fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", b"-")
    output = Store.at(f"{root}/b/out")

    def listed(url: str, **how: bool) -> set[str]:
        return {os.fsdecode(i.path) for g in without_output(find_input(url, **how), output).groups() for i in g}

    assert "overlays" not in " ".join(listed(f"{root}/**/*.*g")) and "out-of-this/3.png" in listed(f"{root}/b/**/*.*g")
    assert "2.png" in listed(f"{root}/b", recursive=False)
    with pytest.raises(UsageError, match="lies within the input"):
        listed(f"{root}/b")
    assert listed(f"{root}/b/out-of-this") == {"3.png"}


def test_an_object_store_is_known_again() -> None:
    one, same, other = (
        resolve(f"s3://key:word@bucket/{name}?region=eu-west-1&endpoint_override={host}:9")[0]
        for name, host in (("a", "here"), ("b", "here"), ("a", "there"))
    )
    assert is_same(one, same) and not is_same(one, other) and not is_same(one, resolve("/bucket")[0])


@pytest.mark.parametrize(
    ("scheme", "query"),
    [("s3", "?region=eu-west-1"), ("s3", "?endpoint_override=http://here:9&region=eu-west-1"), ("gs", "")],
)
@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("my photos/Zürich #2/a|b", "my photos/Zürich #2/a|b"),
        ("2026/IMG_?.[jJ][pP]g", "2026/IMG_?.[jJ][pP]g"),
        ("**/{a}^`<b>", "**/{a}^`<b>"),
        ("my%20photos/100%/5%g1", "my photos/100%/5%g1"),
        ("a&b=c;d@e:f", "a&b=c;d@e:f"),
        ("", ""),
    ],
)
def test_paths_in_object_stores_are_written_as_they_are(written: str, path: str, query: str, scheme: str) -> None:
    assert resolve(f"{scheme}://bucket/{written}{query}")[1].rstrip("/") == f"bucket/{path}".rstrip("/")


def test_parquet_keeps_row_groups_together_and_cuts_large_ones(tmp_path: Path) -> None:
    write_hub_parquet(tmp_path / "train-0.parquet", [b"x"] * 10, rows_a_group=4)
    write_hub_parquet(tmp_path / "train-1.parquet", [b"x"] * 20, rows_a_group=20)
    source = find_input(str(tmp_path), image_column="img")
    assert [len(group) for group in source.groups()] == [4, 4, 2, 20]
    shards = list(cut(source.groups(), 8))
    assert [len(shard) for shard in shards] == [8, 2, 6, 7, 7]
    assert [item for shard in shards for item in shard] == [item for group in source.groups() for item in group]
    assert shards[2][0] == Item(b"train-1.parquet", 0, (tmp_path / "train-1.parquet").stat().st_size)


def test_shards_grow_with_the_listing() -> None:
    def items(count: int) -> Iterator[list[Item]]:
        return ([Item(b"%d" % number, -1, 1)] for number in range(count))

    sizes = [len(shard) for shard in cut(items(100_000), None)]
    assert sizes[0] == 32 and sum(sizes) == 100_000
    assert all(later >= earlier for earlier, later in itertools.pairwise(sizes[:-1]))
    assert len(sizes) < 2_500 and max(sizes) < 1_024
    # A listing that goes on longer is cut alike as far as it goes.
    assert [len(shard) for shard in cut(items(80_000), None)][:-1] == sizes[
        : sum(1 for _ in cut(items(80_000), None)) - 1
    ]


@pytest.mark.parametrize(
    ("pictures", "sizes"), [(3, [3]), (9, [4, 4, 1]), (100, [7] * 14 + [2]), (500, [32] * 15 + [20])]
)
def test_a_small_listing_is_cut_so_that_workers_end_together(pictures: int, sizes: list[int]) -> None:
    groups = ([Item(b"%d" % number, -1, 1)] for number in range(pictures))
    assert [len(shard) for shard in cut(groups, None)] == sizes


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nothing", "there is no file or folder"), ("*.png", "nothing matches"), ("s3x://bucket", "cannot be opened")],
)
def test_what_is_not_there_is_said(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected):
        find_input(name if "://" in name else str(tmp_path / name))


def test_an_empty_folder_says_what_it_holds_instead(tmp_path: Path) -> None:
    source = find_input(str(tmp_path))
    assert not list(source.groups()) and why_empty(source).endswith(
        "holds no pictures (JPEG, PNG, WEBP, GIF, BMP) and no rows of parquet"
    )
    (tmp_path / "a.txt").touch()
    assert not list(source.groups()) and "but 1 others: 1 .txt" in why_empty(source)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes away its own rights, which only root can get back")
def test_a_folder_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:  # not pytest's, whose parents are closed to others
        root = Path(place)
        root.chmod(0o755)
        (root / "locked").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(UsageError, match="locked cannot be read: Permission denied"):
                list(find_input(str(root)).groups())
            with pytest.raises(UsageError, match="cannot be read: Permission denied"):
                find_input(str(root / "locked" / "*.png"))
        finally:
            os.seteuid(0)


def test_parquet_that_cannot_be_used_is_refused_with_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_hub_parquet(file, [scene_png(0, 32)], rows_a_group=1)
    with pytest.raises(
        UsageError, match=r"a\.parquet has no column 'image'; it has: img, label\. Name one with --image-column"
    ):
        list(find_input(str(file)).groups())
    with pytest.raises(UsageError, match="must hold bytes, or a struct with bytes and path, and holds int64"):
        list(find_input(str(file), image_column="label").groups())
    with pytest.raises(UsageError, match=r"no column 'key'.*--id-column"):
        list(find_input(str(file), image_column="img", id_column="key").groups())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"the parquet file a\.parquet cannot be read"):
        list(find_input(str(file), image_column="img").groups())


def test_pictures_and_parquet_together_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.png").touch()
    with pytest.raises(UsageError, match=r"both pictures and parquet files, such as a.parquet and b.png"):
        list(find_input(str(tmp_path)).groups())


@pytest.mark.slow
def test_a_hundred_thousand_files_are_listed_in_seconds_and_little_memory(tmp_path: Path) -> None:
    for thousand in range(100):
        (tmp_path / f"{thousand:02d}").mkdir()
        first = tmp_path / f"{thousand:02d}" / "000.png"
        first.touch()
        for number in range(1, 1000):
            os.link(first, first.with_stem(f"{number:03d}"))
    began = time.process_time()
    tracemalloc.start()
    count = sum(len(shard) for shard in cut(find_input(str(tmp_path)).groups(), None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 2_000_000  # bytes: a folder and a shard, not the listing
    assert time.process_time() - began < 30
