"""A batch job from and to an object store: a server that speaks S3, over HTTP."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from batch_support import PROMPTS, results, run, scene_png
from pyarrow.fs import FileSystem

ASKED = tuple(word for prompt in PROMPTS for word in ("--prompt", prompt))
NUM_PICTURES = 6


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket; jobs find the server by the usual variables."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        files, root = FileSystem.from_uri("s3://pictures?allow_bucket_creation=true")
        files.create_dir(root)
        yield "s3://pictures"
    finally:
        server.stop()


@pytest.mark.slow
def test_a_job_from_a_bucket_to_a_bucket(bucket: str, tmp_path: Path) -> None:
    files, root = FileSystem.from_uri(bucket)
    (tmp_path / "local").mkdir()
    for number in range(NUM_PICTURES):
        data = scene_png(number) if number else b"no picture"
        (tmp_path / "local" / f"{number:03d}.png").write_bytes(data)
        with files.open_output_stream(f"{root}/in/{number:03d}.png") as file:
            file.write(data)
    words = (f"{bucket}/in", *ASKED, "--output", f"{bucket}/out", "--shard-size", "2", "--num-workers", "1")
    done = run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    here = run(str(tmp_path / "local"), *ASKED, "--output", "here", "--num-workers", "1", folder=tmp_path)
    assert here.returncode == 0, here.stdout + here.stderr

    def read(name: str) -> bytes:
        with files.open_input_stream(f"{root}/out/{name}") as file:
            return file.read()

    names = [file.base_name for file in files.get_file_info(_selector(f"{root}/out/results")) if file.is_file]
    assert len(names) == NUM_PICTURES // 2
    frame = pd.concat([pd.read_parquet(io.BytesIO(read(f"results/{name}"))) for name in sorted(names)])
    expected = results(tmp_path / "here")
    pd.testing.assert_frame_equal(frame.reset_index(drop=True), expected.reset_index(drop=True))
    assert len(pd.read_parquet(io.BytesIO(read("errors.parquet")))) == 1
    assert json.loads(read("instances.json"))["images"]
    again = run(*words, folder=tmp_path)
    assert again.returncode == 0 and "nothing is left to do" in again.stdout, again.stdout + again.stderr


def _selector(folder: str) -> object:
    from pyarrow.fs import FileSelector

    return FileSelector(folder)
