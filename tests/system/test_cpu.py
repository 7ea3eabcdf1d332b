"""What /proc/cpuinfo says, by the processors that say it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.system import cpu

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16{}\n"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f{}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16{}\n"


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    cpu._fields.cache_clear()
    yield
    cpu._fields.cache_clear()


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        (INTEL.format(""), False),  # one port for dot products of bf16
        (INTEL.format(" amx_bf16 amx_tile"), True),
        (AMD.format(""), False),
        (AMD.format(" avx512_bf16"), True),
        (ARM.format(""), False),  # torch's products of bf16 on ARM were not measured
        ("", False),
    ],
)
def test_bf16_is_computed_in_where_it_is_faster(
    text: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.fast_bf16() is fast


def test_the_first_processor_speaks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(INTEL.format("") + "\n" + AMD.format(" avx512_bf16"))
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.flags() == {"fpu", "avx512f", "avx512_bf16"}


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert cpu.flags() == frozenset()
    assert not cpu.fast_bf16()


def test_instructions_are_those_that_a_compiler_emits(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "fpu msr sse2 ssse3 avx512_fp16 amx_tile fma bmi2 vaes sha_ni hypervisor ibrs_enhanced tsc smep sme"
    monkeypatch.setattr(cpu, "flags", lambda: frozenset(listed.split()))
    assert cpu.instructions() == [
        "amx_tile", "avx512_fp16", "bmi2", "fma", "sha_ni", "sme", "sse2", "ssse3", "vaes",
    ]  # fmt: skip
