"""The text of docs/python-api.md, run from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runner

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "python-api.md"


@pytest.mark.nightly
def test_the_blocks_of_the_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    script = tmp_path / "page.py"
    script.write_text("\n".join([*blocks, "import sys", "assert 'torch' not in sys.modules"]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()
    assert out[0].startswith("llama-int8-rtn-")
    assert "R224 `bits` must be an integer, as its default 8 is; got `--set bits=many`" in out
    assert [line.split()[0] for line in out if line.endswith(" s") and len(line.split()) == 3] == [
        "baseline", "rtn", "quality", "divergence"
    ]  # fmt: skip
    assert any(re.fullmatch(r"done jobs/llama-int8-rtn-\w+/output", line) for line in out)
    assert sum(line.endswith("gate-missed") for line in out) == 2
    assert out[-1] == "3 jobs"
    assert (tmp_path / "report.html").is_file()


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in runner.__all__ if f"`{name}" not in text] == []
