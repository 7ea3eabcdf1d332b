"""The parts of the benchmarks that results rest on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import measure, random_llama, tokens


@pytest.mark.parametrize("shard_bytes", [2_000_000_000, 1_000_000])
def test_random_llama_loads_whole(tmp_path: Path, shard_bytes: int) -> None:
    import transformers

    # `Any`: transformers types the result without the loading info.
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    total = random_llama.write(tmp_path / "model", 2, 256, shard_bytes=shard_bytes)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == (1 if shard_bytes > total else 5)
    model, info = load(tmp_path / "model", dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert total == 2 * model.num_parameters()
    weight = model.model.layers[1].mlp.up_proj.weight.detach().float()
    assert abs(float(weight.mean())) < 1e-3
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert bool((model.model.norm.weight == 1).all())


def test_sizes_are_layers_by_width() -> None:
    assert random_llama.parse_size("12x512") == (12, 512)
    message = "size must be LAYERSxHIDDEN with HIDDEN one of 256, 512, 1024, 2048, 4096; got '12x500'"
    with pytest.raises(SystemExit, match=message):
        random_llama.parse_size("12x500")


def test_windows_are_those_of_the_product() -> None:
    """Peers and judge get what the product makes of the same text, by other code."""
    from runner.data.windows import windows
    from runner.model.source.locate import locate_data
    from runner.recipe.types import DataSpec

    location = locate_data(DataSpec("calibration", "demo:stdlib", "calibration", 128, samples=40))
    ours = windows(location.spec, location.files, tokens.TINY_LLAMA)
    assert np.array_equal(np.asarray(ours), tokens.windows("calibration", 40, 128))


def test_measure_counts_time_processor_and_memory(tmp_path: Path) -> None:
    # More than this process may hold: a child's peak is never less than its parent's at the start.
    program = "import time; block = b'x' * 1_500_000_000; time.sleep(0.3)"
    command = [sys.executable, "-c", program]
    result = measure.run(command, cwd=tmp_path, log=tmp_path / "log.txt", cores=[0], env=measure.environment(1))
    assert 0.3 < result.seconds < 30
    assert result.cpu > 0
    assert 1.5e9 < result.memory < 1.6e9


def test_measure_tells_why_a_command_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(SystemExit, match=r"exited 1; the end of its output:\nno such luck"):
        measure.run(command, cwd=tmp_path, log=tmp_path / "log.txt", cores=[0], env=measure.environment(1))
