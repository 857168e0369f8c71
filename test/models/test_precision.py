"""Choice of bfloat16 or float32 by the hardware."""

from __future__ import annotations

import pytest
import torch

from speechllm.models import precision
from speechllm.models.precision import resolve_dtype
from speechllm.utils import machine

AMD, INTEL = "AuthenticAMD", "GenuineIntel"


@pytest.mark.parametrize(
    ("name", "architecture", "vendor", "onednn", "avx512_bf16", "amx", "expected"),
    [
        ("EPYC Zen 4", "x86_64", AMD, True, True, False, torch.bfloat16),
        ("Ryzen on Windows", "AMD64", AMD, True, True, False, torch.bfloat16),
        ("EPYC Zen 3", "x86_64", AMD, False, False, False, torch.float32),
        ("Sapphire Rapids", "x86_64", INTEL, True, True, True, torch.bfloat16),
        ("the same, AMX hidden", "x86_64", INTEL, True, True, False, torch.float32),
        ("Skylake", "x86_64", INTEL, True, False, False, torch.float32),
        ("Graviton 3", "aarch64", "", True, False, False, torch.bfloat16),
        ("Graviton 2", "aarch64", "", False, False, False, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_it_is_faster(
    monkeypatch, name, architecture, vendor, onednn, avx512_bf16, amx, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision.platform, "machine", lambda: architecture)
    monkeypatch.setattr(precision, "cpu_vendor", lambda: vendor)
    assert resolve_dtype("auto") is expected, name
    assert resolve_dtype("bfloat16") is torch.bfloat16


def test_without_onednn_and_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_dtype("auto") is torch.float32
    assert resolve_dtype("4bit") is torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_dtype("auto") is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert resolve_dtype("auto") is torch.float32
    assert resolve_dtype("4bit") is torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'int8': float32, bfloat16, float16"):
        resolve_dtype("int8")


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "expected"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n",
            "",
            AMD,
        ),
        ("processor\t: 0\nBogoMIPS\t: 2100.00\n", "aarch64", ""),
        (None, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", INTEL),
        (None, "", ""),
    ],
)
def test_vendor_of_the_cpu(monkeypatch, cpuinfo, processor, expected):
    def read_text(path):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(machine.Path, "read_text", read_text)
    monkeypatch.setattr(machine.platform, "processor", lambda: processor)
    assert machine.cpu_vendor() == expected
