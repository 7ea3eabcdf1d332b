from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.report import compare
from runner.report import job_report as job
from tests.commands.conftest import Run
from tests.report.jobs import made

RECIPE = "version: 1\nname: {name}\nparams: {{bits: {bits}, seed: 1}}\nmodel: {{source: m}}\n"
STEPS = [
    {"id": "quality", "kind": "evaluate.perplexity", "produces": "metrics", "inputs": {"checkpoint": "gptq"}},
]


def job_of(
    root: Path, bits: int, size: int, perplexity: float, name: str = "demo", latency: float | None = None, **more: str
) -> str:
    """A job whose weights take `size` bytes; its id."""
    steps = [{"id": "gptq", "kind": "quantize.gptq", "params": {"bits": bits}}, *STEPS]
    metrics: dict[str, dict[str, float]] = {"quality": {"perplexity": perplexity, "kl": 1 / perplexity}}
    if latency is not None:
        metrics["quality"]["latency_seconds"] = latency
    recipe = RECIPE.format(name=name, bits=bits)
    return made(root, steps=steps, name=name, metrics=metrics, details={}, recipe=recipe, size=size, **more).job_id  # type: ignore[arg-type]


@pytest.fixture
def three(folder: Path) -> list[str]:
    """Of 2, 3 and 4 bits; the one of 3 is dominated by the one of 2."""
    root = folder / "jobs"
    return [job_of(root, 2, 2000, 11.0), job_of(root, 3, 3000, 12.0), job_of(root, 4, 4000, 10.0)]


def test_the_table_and_the_front(run: Run, three: list[str]) -> None:
    two, three_bits, four = three
    code, out, err = run("compare", two, three_bits, four)
    assert (code, err) == (0, "")
    assert (
        out
        == f"""\
   job                bits     size  perplexity   time  memory  status
●  {two}     2  2.00 kB          11  4.0 s  500 MB  done
   {three_bits}     3  3.00 kB          12  4.0 s  500 MB  done
●  {four}     4  4.00 kB          10  4.0 s  500 MB  done

Pareto front of size and perplexity: {two}, {four}
{three_bits} is dominated by {two}
"""
    )


def test_another_metric(run: Run, three: list[str]) -> None:
    document = json.loads(run("compare", "--metric", "quality.kl", "--json")[1])
    assert document["axes"] == ["size", "quality.kl"]
    assert [row["quality"] for row in sorted(document["jobs"], key=lambda row: row["size"])] == [1 / 11, 1 / 12, 1 / 10]


def test_what_was_measured_in_another_way_is_on_no_front(run: Run, three: list[str], folder: Path) -> None:
    """On other data, or by a step of another kind that calls its metric the same."""
    ways: list[dict[str, Any]] = [{"kind": "evaluate.served"}, {"params": {"windows": 4}}]
    others = []
    for bits, way in enumerate(ways, 5):
        steps = [{"id": "gptq", "kind": "quantize.gptq", "params": {"bits": bits}}, {**STEPS[0], **way}]
        metrics = {"quality": {"perplexity": 1.0 + bits}}
        recipe = RECIPE.format(name="demo", bits=bits)
        others.append(made(folder / "jobs", steps=steps, metrics=metrics, details={}, recipe=recipe, size=9).job_id)
    two, three_bits, four = three
    assert run("compare", *three, *others)[1].endswith(
        f"Pareto front of size and perplexity: {two}, {four}\n"
        f"{three_bits} is dominated by {two}\n"
        f"not compared, perplexity being measured in another way or on other data: {', '.join(others)}\n"
    )


def test_of_two_ways_that_is_compared_which_most_jobs_have(folder: Path) -> None:
    root = folder / "jobs"
    served = {"id": "served", "kind": "evaluate.served", "produces": "metrics", "inputs": {"checkpoint": "gptq"}}
    one = job_of(root, 2, 2000, 11.0)
    steps = [{"id": "gptq", "kind": "quantize.gptq", "params": {"bits": 3}}, *STEPS, served]
    metrics = {"quality": {"perplexity": 10.0}, "served": {"perplexity": 20.0}}
    two = made(root, steps=steps, metrics=metrics, details={}, recipe=RECIPE.format(name="demo", bits=3), size=3000)
    found = compare.compare([(job.read(root, id), {}) for id in (one, two.job_id)])
    assert [(row.quality, row.measured_alike, row.front) for row in found.rows] == [
        (11.0, True, True),
        (10.0, True, True),
    ]


def test_a_recipe_stands_for_its_jobs(run: Run, folder: Path, three: list[str]) -> None:
    job_of(folder / "jobs", 8, 8000, 9.0, name="other")
    document = json.loads(run("compare", "demo", "--json")[1])
    assert sorted(row["id"] for row in document["jobs"]) == sorted(three)
    assert len(json.loads(run("compare", "--json")[1])["jobs"]) == 4


def test_a_recipe_file_stands_for_its_jobs(run: Run, job: str, folder: Path) -> None:
    document = json.loads(run("compare", "toy.yaml", "--json")[1])
    assert [row["id"] for row in document["jobs"]] == [job]
    (folder / "new.yaml").write_text((folder / "toy.yaml").read_text().replace("name: toy", "name: new"))
    assert run("compare", "new.yaml") == (
        2, "", "error: new.yaml was not applied here\nhelp: `runner apply new.yaml` applies it\n"
    )  # fmt: skip


def test_speed_is_an_axis_where_all_have_one(folder: Path) -> None:
    root = folder / "jobs"
    ids = [job_of(root, 2, 2000, 10.0, latency=3.0), job_of(root, 3, 3000, 11.0, latency=1.0)]
    timed = compare.compare([(job.read(root, id), {}) for id in ids])
    assert (timed.axes, [row.front for row in timed.rows]) == (("size", "perplexity", "latency_seconds"), [True, True])
    ids.append(job_of(root, 4, 2500, 10.5))
    untimed = compare.compare([(job.read(root, id), {}) for id in ids])
    assert (untimed.axes, [row.front for row in untimed.rows]) == (("size", "perplexity"), [True, False, False])


def test_a_job_that_failed_is_not_compared(run: Run, folder: Path, three: list[str]) -> None:
    failed = job_of(folder / "jobs", 5, 1000, 1.0, status="failed")
    out = run("compare")[1]
    assert out.splitlines()[-1] == f"not compared, for want of a size or of perplexity: {failed}"


def test_a_metric_that_nobody_measured(run: Run, three: list[str]) -> None:
    assert run("compare", "--metric", "speed") == (
        2, "", "error: none of these jobs measured `speed`\nhelp: they measured kl, perplexity\n"
    )  # fmt: skip


def test_no_jobs(run: Run) -> None:
    assert run("compare") == (2, "", "error: there are no jobs in jobs\nhelp: `runner apply RECIPE` makes one\n")


@pytest.mark.parametrize(
    ("one", "other", "so"),
    [((1, 2), (1, 3), True), ((1, 2), (1, 2), False), ((1, 3), (2, 2), False), ((2, 2), (1, 1), False)],
)
def test_what_beats(one: tuple[int, int], other: tuple[int, int], so: bool) -> None:
    assert compare.dominates(one, other) is so
