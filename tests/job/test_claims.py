"""Claims on steps in a remote store, here a folder; tests/job/test_remote_s3.py has a server of S3."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runner.job import claims
from runner.job.claims import Claims
from runner.job.remote import Remote

KEY = "ab" * 32


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(f"file://{tmp_path}/remote")


def test_one_process_has_a_step_until_it_gives_it_back(remote: Remote) -> None:
    first, second = Claims(remote, "first"), Claims(remote, "second")
    assert first.take(KEY) is None
    holder = second.take(KEY)
    assert holder is not None
    assert holder.command == "first"
    assert second.take("cd" * 32) is None
    first.release(KEY)
    assert second.take(KEY) is None
    second.close()
    assert remote.names(f"claims/{KEY}") == []


def test_at_most_one_of_many_has_a_step_at_any_time(remote: Remote) -> None:
    held: list[int] = []
    most: list[int] = []
    counts = [0] * 6
    lock = threading.Lock()

    def work(index: int) -> None:
        own = Claims(remote, str(index))
        while counts[index] < 3:
            if own.take(KEY) is None:
                with lock:
                    held.append(index)
                    most.append(len(held))
                with lock:
                    held.remove(index)
                    counts[index] += 1
                own.release(KEY)
        own.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [3] * 6
    assert set(most) == {1}


def test_the_claim_of_a_process_that_is_gone_is_abandoned(remote: Remote) -> None:
    code = f"from runner.job.claims import *; import os; Claims(Remote({remote.url!r}), 'x').take({KEY!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(remote.names(f"claims/{KEY}")) == 1
    own = Claims(remote, "own")
    assert own.take(KEY) is None
    own.close()


def test_a_claim_of_another_machine_is_abandoned_once_its_count_does_not_rise(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("runner.job.claims.time.monotonic", lambda: now[0])
    claim = {"pid": 1, "host": "elsewhere", "machine": "another", "command": "x", "started": "then", "beat": 0}
    remote.write(f"claims/{KEY}/elsewhere.json", json.dumps(claim).encode())
    own = Claims(remote, "own")
    assert str(own.take(KEY)) == "process 1 on elsewhere (x), since then"
    now[0] += 50
    remote.write(f"claims/{KEY}/elsewhere.json", json.dumps({**claim, "beat": 1}).encode())
    assert own.take(KEY) is not None
    now[0] += 59
    assert own.take(KEY) is not None
    now[0] += 2
    assert own.take(KEY) is None
    own.close()


def test_claims_rise_while_they_are_held(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_BEAT", 0.01)
    own = Claims(remote, "own")
    assert own.take(KEY) is None
    (name,) = remote.names(f"claims/{KEY}")
    rising = threading.Event()
    for _ in range(2000):
        content = remote.content(f"claims/{KEY}/{name}")
        if content is not None and json.loads(content)["beat"] >= 2:
            rising.set()
            break
        threading.Event().wait(0.01)
    own.close()
    assert rising.is_set()
    assert remote.names(f"claims/{KEY}") == []


def test_one_look_serves_all_that_wait_for_a_step_and_looks_become_rarer(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("runner.job.claims.time.monotonic", lambda: now[0])
    first, second = Claims(remote, "first"), Claims(remote, "second")
    assert first.take(KEY) is None
    assert second.seen(KEY) is None
    holder = second.take(KEY)
    assert second.seen(KEY) == holder
    now[0] += 1.1
    assert second.seen(KEY) is None
    now[0] += 58.9
    first._beats += 1
    first._write(KEY)
    assert second.take(KEY) == holder
    now[0] += 5.9
    assert second.seen(KEY) == holder
    now[0] += 0.2
    assert second.seen(KEY) is None
    first.release(KEY)
    assert second.take(KEY) is None
    assert second.seen(KEY) is None
    second.close()
