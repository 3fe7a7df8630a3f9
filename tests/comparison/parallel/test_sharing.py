"""Shares of a machine: no GPU twice while one is free, no more threads than there are."""

import pytest

from deepen.comparison.parallel.sharing import gpus, slots


@pytest.mark.parametrize("jobs", [1, 2, 3, 7])
@pytest.mark.parametrize("devices", [[], ["0"], ["4", "5", "GPU-1a"]])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_shares(jobs, devices, threads):
    environments = slots(jobs, devices, threads, {})
    assert len(environments) == jobs
    used = [slot.get("CUDA_VISIBLE_DEVICES") for slot in environments]
    assert set(used) == (set(devices[:jobs]) or {None})
    assert max(map(used.count, used)) - min(map(used.count, used)) <= 1 or not devices
    if jobs == 1:
        assert "OMP_NUM_THREADS" not in environments[0], "one process alone keeps what it has"
        return
    shares = [int(slot["OMP_NUM_THREADS"]) for slot in environments]
    assert len(set(shares)) == 1
    assert shares[0] == 1 or sum(shares) <= threads < sum(shares) + jobs


def test_threads_wait_without_spinning_unless_the_user_wants_it():
    assert slots(2, [], 2, {})[0]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert slots(2, [], 2, {"OMP_WAIT_POLICY": "ACTIVE"})[0]["OMP_WAIT_POLICY"] == "ACTIVE"


def test_gpus_keep_the_names_that_the_user_gave():
    assert gpus(2, {}) == ["0", "1"]
    assert gpus(2, {"CUDA_VISIBLE_DEVICES": "5, 7"}) == ["5", "7"]
    assert gpus(1, {"CUDA_VISIBLE_DEVICES": "5,99"}) == ["5"]
    assert gpus(0, {"CUDA_VISIBLE_DEVICES": ""}) == []
