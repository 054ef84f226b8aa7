"""Downloads, against a server on this machine."""

import hashlib
import os
from pathlib import Path

import pytest

from rhovae_kernels.data import download


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "new" / "file.gz"


def part_of(path: Path) -> Path:
    return path.with_name("file.gz.part")


def get(server, path: Path) -> None:
    download.download(f"{server.url}/file.gz", path, hashlib.md5(server.content).hexdigest())


def test_a_file_arrives_whole_and_nothing_else_stays(server, path):
    get(server, path)
    assert path.read_bytes() == server.content
    assert os.listdir(path.parent) == ["file.gz"]


def test_an_interrupted_download_is_not_there_and_goes_on_where_it_stopped(server, path):
    server.cut_after = 40_000
    with pytest.raises(OSError, match=r"file.gz: not there, and its download .*again"):
        get(server, path)
    assert not path.exists()
    kept = part_of(path).stat().st_size
    assert 0 < kept <= 40_000
    server.cut_after = None
    get(server, path)
    assert path.read_bytes() == server.content
    assert server.requests[-1][1] == f"bytes={kept}-"
    assert not part_of(path).exists()


def test_a_server_without_ranges_sends_everything_again(server, path):
    server.ranges = False
    path.parent.mkdir()
    part_of(path).write_bytes(server.content[:30_000])
    get(server, path)
    assert path.read_bytes() == server.content
    assert server.requests[-1][1] == "bytes=30000-"


def test_a_part_that_is_already_whole_is_taken(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(server.content)
    get(server, path)
    assert path.read_bytes() == server.content


def test_a_wrong_checksum_is_refused_thrown_away_and_can_be_tried_again(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(bytes(30_000))  # left by the download of another file
    with pytest.raises(ValueError, match=r"file.gz: not there, .*MD5 is \w{32}, not \w{32}"):
        get(server, path)
    assert os.listdir(path.parent) == []
    get(server, path)
    assert path.read_bytes() == server.content


def test_a_server_that_does_not_answer_is_named(path, server):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=f"file.gz: not there, .*{url}/file.gz failed"):
        download.download(f"{url}/file.gz", path, "0" * 32)


def test_an_address_that_is_none_is_named(path):
    with pytest.raises(OSError, match="unknown url type"):
        download.download("nowhere/file.gz", path, "0" * 32)
