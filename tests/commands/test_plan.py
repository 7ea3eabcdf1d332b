from __future__ import annotations

import json

from tests.commands.conftest import Run, steady


def test_everything_is_to_run(run: Run) -> None:
    code, out, err = run("plan", "toy.yaml")
    assert (code, err) == (0, "")
    assert (
        steady(out)
        == """\
toy-ID
A toy.
demo:tiny-llama: LlamaForCausalLM, 6 layers, 5.77 M parameters, 11.5 MB; on the CPU (N cores)

 #  step    kind        state  memory     disk   time  reason
 1  before  toy.score   run    100 MB           < 1 s  first run
 2  shrink  toy.shrink  run    250 MB  11.5 MB  ~12 s  first run
 3  after   toy.score   run    100 MB           < 1 s  first run

shrink: 56 changed (down, gate, up, embedding, o, q, k, v, norm; 11.5 MB), 1 tied (head)

3 to run; peak memory SIZE of ALL available, 13.5 MB of disk, ~13 s
"""
    )


def test_what_changed_is_the_reason(run: Run, job: str) -> None:
    assert (
        steady(run("plan", "toy.yaml", "--set", "points=7")[1])
        == """\
toy-ID
A toy.
demo:tiny-llama: LlamaForCausalLM, 6 layers, 5.77 M parameters, 11.5 MB; on the CPU (N cores)

 #  step    kind        state   memory  disk   time  reason
 1  before  toy.score   cached                       nothing changed
 2  shrink  toy.shrink  cached                       nothing changed
 3  after   toy.score   run     100 MB        < 1 s  `points` changed 5.0 → 7.0

shrink: 56 changed (down, gate, up, embedding, o, q, k, v, norm; 11.5 MB), 1 tied (head)

1 to run, 2 cached; peak memory SIZE of ALL available, 0 B of disk, < 1 s
"""
    )


def test_nothing_to_run(run: Run, job: str) -> None:
    code, out, _ = run("plan", "toy.yaml")
    assert code == 0
    assert out.endswith("\nnothing to run: all 3 steps are cached\n")


def test_planning_leaves_no_job(run: Run, folder: object) -> None:
    run("plan", "toy.yaml")
    assert run("jobs") == (0, "no jobs in jobs\n", "")


def test_json(run: Run) -> None:
    code, out, _ = run("plan", "toy.yaml", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["totals"] == {"memory": 250_000_000, "disk": 11_500_000, "scratch": 2_000_000, "seconds": 13.4}
    assert [(s["id"], s["state"], s["reason"]) for s in document["steps"]] == [
        ("before", "run", "first run"), ("shrink", "run", "first run"), ("after", "run", "first run"),
    ]  # fmt: skip
    assert document["model"]["parameters"] > 5_000_000
