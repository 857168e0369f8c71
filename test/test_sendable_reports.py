"""Reports of tests that run in parallel."""

from __future__ import annotations

import execnet
import pytest
from sendable_reports import without_surrogates


def test_a_report_with_any_file_name_can_be_sent():
    report = {"longrepr": ("a\udc83.wav", 1), "sections": [["log", "é\ud800"]]}
    with pytest.raises(execnet.DumpError, match="utf-8"):
        execnet.dumps(report)
    sent = execnet.loads(execnet.dumps(without_surrogates({**report, "seconds": 0.1})))
    assert sent == {
        "longrepr": ("a\\udc83.wav", 1),
        "sections": [["log", "é\\ud800"]],
        "seconds": 0.1,
    }
