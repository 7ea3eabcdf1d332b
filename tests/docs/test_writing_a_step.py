"""The text of docs/writing-a-step.md, followed to the letter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runner.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "writing-a-step.md"


def blocks() -> dict[str, str]:
    """Language → code block; the page has one of each."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert [language for language, _ in found] == ["python", "json", "yaml"]
    return dict(found)


def test_the_kind_takes_fewer_than_80_lines() -> None:
    texts = blocks()
    assert len((texts["python"] + texts["json"]).splitlines()) < 80
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 80


def test_the_text_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file

    texts = blocks()
    steps = tmp_path / "my-steps"
    (steps / "quantize").mkdir(parents=True)
    (steps / "quantize" / "log2.py").write_text(texts["python"], encoding="utf-8")
    (steps / "quantize.log2.schema.json").write_text(texts["json"], encoding="utf-8")
    (tmp_path / "log2.yaml").write_text(texts["yaml"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_STEPS_PATH", "my-steps")

    assert main(["steps", "quantize.log2"]) == 0
    assert "Bits of a weight, its sign among them." in capsys.readouterr().out
    assert main(["apply", "log2.yaml"]) == 0

    (job,) = (path for path in (tmp_path / "jobs").iterdir() if path.name.startswith("log2-"))
    source = load_file(ROOT / "runner" / "demo" / "models" / "tiny-llama" / "model.safetensors")
    written = load_file(job / "output" / "model.safetensors")
    assert sorted(written) == sorted(source)
    for name, weight in written.items():
        if not re.search(r"layers\.\d+\.(self_attn|mlp)\.", name):
            assert torch.equal(weight, source[name]), name
            continue
        values = weight.float().unflatten(1, (-1, 64))
        mantissa, exponent = torch.frexp(values)
        assert torch.equal(mantissa.abs()[values != 0], torch.full_like(values[values != 0], 0.5)), name
        assert torch.equal(values.sign(), source[name].float().unflatten(1, (-1, 64)).sign()), name
        assert int((exponent.amax(-1) - exponent.amin(-1)).max()) <= 7, name  # 8 levels and a sign: 4 bits
    metrics = json.loads((job / "steps" / "01-log2" / "metrics.json").read_text(encoding="utf-8"))
    assert 0.03 < metrics["weight_error"] < 0.06
