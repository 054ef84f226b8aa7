"""Downloads, against a server on this machine."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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


PROGRAM = """
import sys
from pathlib import Path
from rhovae_kernels.data.download import download
print("started", flush=True)
download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


@pytest.fixture
def start(server, path):
    """Starts a process that downloads, and waits until it is about to."""
    processes = []

    def of_its_own() -> subprocess.Popen:
        md5 = hashlib.md5(server.content).hexdigest()
        command = [sys.executable, "-c", PROGRAM, f"{server.url}/file.gz", str(path), md5]
        root = Path(__file__).parents[2]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "started\n"
        return process

    yield of_its_own
    server.go_on.set()
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def held(server):
    """A server that sends half of a file, and the rest once it is told to."""
    server.content = np.random.RandomState(2).bytes(400_000)
    server.hold_after = 200_000
    return server


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.01)


def test_of_two_processes_one_downloads_and_the_other_finds_the_file(held, path, start):
    first = start()
    wait_until(lambda: part_of(path).exists() and part_of(path).stat().st_size > 100_000)
    second = start()
    time.sleep(0.5)  # in which it would ask for the file, did it not wait
    assert len(held.requests) == 1 and first.poll() is None and second.poll() is None
    held.go_on.set()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert held.requests == [("/file.gz", None)]
    assert path.read_bytes() == held.content
    assert os.listdir(path.parent) == ["file.gz"]


def test_where_one_process_is_killed_the_other_goes_on_from_what_it_left(held, path, start):
    first = start()
    wait_until(lambda: part_of(path).exists() and part_of(path).stat().st_size > 100_000)
    second = start()
    kept = part_of(path).stat().st_size
    first.kill()
    wait_until(lambda: len(held.requests) == 2)
    held.go_on.set()
    assert second.wait(60) == 0
    assert held.requests[1] == ("/file.gz", f"bytes={kept}-")
    assert path.read_bytes() == held.content
    assert os.listdir(path.parent) == ["file.gz"]
