"""A launch of two processes of which one ends."""

from __future__ import annotations

import time

import ending_processes
import pytest

from speechllm.training import lightning_launch
from speechllm.utils.errors import UserError


@pytest.mark.parametrize("way", ["kill", "error"])
def test_a_process_that_ends_takes_the_others_with_it(way, monkeypatch, capfd):
    """A kill names the rank; an error is printed by its process."""
    monkeypatch.setattr(lightning_launch, "run_worker", ending_processes.end)
    begin = time.monotonic()
    if way == "kill":
        with pytest.raises(UserError, match="process of rank 1 was ended by SIGKILL"):
            lightning_launch.launch([way], 2)
    else:
        with pytest.raises(SystemExit) as ended:
            lightning_launch.launch([way], 2)
        assert ended.value.code == 1
        assert "error: no such file\n" in capfd.readouterr().err
    assert time.monotonic() - begin < 500  # by itself it would end after 600
