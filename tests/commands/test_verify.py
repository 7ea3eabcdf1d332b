"""`runner verify`, `runner reproduce`, provenance and its signature."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.api.jobs import Job
from runner.job import environment, provenance
from runner.job.records import Record
from tests.commands.conftest import RECIPE, Run

SSH = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def flip(path: Path) -> None:
    """Change a byte of a file and nothing that `ls -l` shows. What is linked to it changes too."""
    status = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def own(path: Path) -> Path:
    """Make a link a file of its own."""
    data, status = path.read_bytes(), path.stat()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def test_a_sound_job(run: Run, job: str) -> None:
    code, out, err = run("verify", job)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if "store/" not in line] == [
        "✓ plan.json", "✓ steps/01-before", "✓ steps/02-shrink", "✓ steps/03-after", "✓ output", "✓ provenance.json",
        "signed: no", f"{job}: all 9 checks passed",
    ]  # fmt: skip
    document = json.loads(run("verify", job, "--json")[1])
    assert (document["sound"], document["signed"], len(document["checks"])) == (True, False, 9)


def test_an_entry_that_left_the_store_is_no_damage(run: Run, job: str, folder: Path) -> None:
    shutil.rmtree(folder / "jobs" / "store")
    code, out, _ = run("verify", job)
    assert code == 0
    assert out.count(": not there\n") == 3


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("steps/02-shrink/out/model.safetensors", [
            "✗ steps/02-shrink: out/model.safetensors has other bytes than were written",
        ]),
        ("output/model.safetensors", [
            "✗ output: model.safetensors has other bytes than were made",
            "✗ provenance.json: output/model.safetensors does not have the digest in it",
        ]),
        ("recipe.yaml", ["✗ provenance.json: recipe.yaml does not have the digest in it"]),
        ("steps/01-before/record.json", ["✗ steps/01-before: record.json is not JSON"]),
        ("plan.json", ["✗ plan.json: it is missing, torn or not a plan"]),
    ],
)  # fmt: skip
def test_a_flipped_byte_is_named(run: Run, job: str, folder: Path, file: str, lines: list[str]) -> None:
    path = own(folder / "jobs" / job / file)
    if file == "plan.json":
        document = json.loads(path.read_text())
        document["steps"][0]["params"]["points"] = 5
        path.write_text(json.dumps(document))
        lines = ["✗ plan.json: its content does not have the key in it"]
    else:
        flip(path)
    code, out, _ = run("verify", job)
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("✗")] == lines
    assert out.endswith(f"{job}: {len(lines)} of 9 checks failed\n")


def test_a_damaged_store_entry(run: Run, job: str, folder: Path) -> None:
    key = json.loads((folder / "jobs" / job / "plan.json").read_text())["steps"][1]["key"]
    flip(own(folder / "jobs" / "store" / key / "out" / "model.safetensors"))
    code, out, _ = run("verify", job)
    assert code == 1
    assert f"✗ store/{key[:12]}: out/model.safetensors has other bytes than were written\n" in out


def test_a_missing_file(run: Run, job: str, folder: Path) -> None:
    (folder / "jobs" / job / "output" / "config.json").unlink()
    shutil.rmtree(folder / "jobs" / job / "steps" / "03-after")
    code, out, _ = run("verify", job)
    assert code == 1
    assert "✗ steps/03-after: it is missing, and the job is done\n" in out
    assert "✗ output: config.json is missing\n" in out


def statement(folder: Path, job: str) -> Any:
    return json.loads((folder / "jobs" / job / "provenance.json").read_text())


def test_the_statement(run: Run, job: str, folder: Path) -> None:
    found = statement(folder, job)
    assert (found["_type"], found["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    names = {subject["name"]: subject["digest"]["sha256"] for subject in found["subject"]}
    output = folder / "jobs" / job / "output"
    assert names == {f"output/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in output.iterdir()}
    build, details = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    recipe = (folder / "jobs" / job / "recipe.yaml").read_bytes()
    assert build["externalParameters"]["recipe"] == {
        "name": "toy", "uri": "recipe.yaml", "digest": {"sha256": hashlib.sha256(recipe).hexdigest()},
    }  # fmt: skip
    model, *packages = build["resolvedDependencies"]
    plan = json.loads((folder / "jobs" / job / "plan.json").read_text())
    assert model == {
        "name": "model", "uri": "demo:tiny-llama", "digest": {"runnerFiles1": plan["model"]["digest"]},
    }  # fmt: skip
    assert any(entry["uri"].startswith("pkg:pypi/torch@") for entry in packages)
    assert details["metadata"]["invocationId"] == job
    assert [entry["name"] for entry in details["byproducts"]] == [
        "steps/01-before",
        "steps/02-shrink",
        "steps/03-after",
    ]


def test_applying_again_leaves_the_statement_and_its_signature(run: Run, job: str, folder: Path) -> None:
    path = folder / "jobs" / job
    before = (path / "provenance.json").read_bytes()
    (path / "provenance.json.sig").write_text("a signature")
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 0
    assert (path / "provenance.json").read_bytes() == before
    assert (path / "provenance.json.sig").exists()
    (path / "provenance.json").write_text("{}")
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 0
    assert statement(folder, job)["subject"] == json.loads(before)["subject"]
    assert not (path / "provenance.json.sig").exists()


def test_who_built_it() -> None:
    assert provenance.builder({}) == "urn:runner:builder:local"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_WORKFLOW_REF": "o/r/.github/workflows/nightly.yml@refs/heads/main"}
    assert provenance.builder(github) == "https://github.com/o/r/.github/workflows/nightly.yml@refs/heads/main"
    gitlab = {"GITLAB_CI": "true", "CI_PROJECT_URL": "https://gitlab.com/o/r", "CI_COMMIT_SHA": "abc"}
    assert provenance.builder(gitlab) == "https://gitlab.com/o/r/-/blob/abc/.gitlab-ci.yml"


@SSH
def test_a_signature(run: Run, job: str, folder: Path) -> None:
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True)
    (folder / "allowed").write_text("ci@example.org " + (folder / "key.pub").read_text())
    assert run("jobs", "sign", job, "--key", "key") == (0, f"wrote jobs/{job}/provenance.json.sig\n", "")
    assert "signed: yes, provenance.json.sig, unchecked (`--allowed-signers` checks it)\n" in run("verify", job)[1]
    code, out, _ = run("verify", job, "--allowed-signers", "allowed")
    assert (code, "signed: yes, by ci@example.org\n" in out) == (0, True)

    path = folder / "jobs" / job / "provenance.json"
    text = path.read_text()
    path.write_text(text.replace('"runner:local"', '"x"') + "\n")
    code, out, _ = run("verify", job, "--allowed-signers", "allowed")
    assert code == 1
    assert "✗ signature: it is not one of provenance.json: " in out
    path.write_text(text)
    assert run("jobs", "sign", job, "--key", "other")[0] == 0
    code, out, _ = run("verify", job, "--allowed-signers", "allowed")
    assert (code, "✗ signature: it was made with a key that allowed does not have\n" in out) == (1, True)


def test_signing_needs_a_key(run: Run, job: str) -> None:
    assert run("jobs", "sign", job) == (
        2, "", "error: `runner jobs sign` needs a key\nhelp: write `--key ~/.ssh/id_ed25519`\n"
    )  # fmt: skip


def test_accept_by_hand(run: Run, job: str, folder: Path) -> None:
    assert run("apply", "toy.yaml", "--set", "points=9", "--progress", "none")[0] == 3
    missed = next(path.name for path in (folder / "jobs").glob("toy-*") if path.name != job)
    assert run("jobs", "accept", missed) == (0, f"{missed} is the accepted job of toy\n", "")
    assert json.loads((folder / "jobs" / "accepted" / "toy.json").read_text())["job"] == missed


def test_reproduce(run: Run, job: str, folder: Path) -> None:
    code, out, err = run("reproduce", job)
    assert (code, err) == (0, "")
    assert out.endswith(f"{job}: all 3 steps gave the same bytes\n")
    assert out.count("✓ ") == 3
    assert sorted(path.name for path in (folder / "jobs").glob(".reproduce*")) == []


@pytest.mark.nightly
def test_what_cannot_be_reproduced_is_named(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that does not give the same bytes twice: what it draws is in no key."""
    kind = folder / "kinds" / "toy"
    shutil.copytree(Path(__file__).parent / "kinds", folder / "kinds")
    source = (kind / "shrink.py").read_text()
    drawn = '    (ctx.out_dir / "drawn").write_bytes(__import__("os").urandom(8))\n    layers = ['
    (kind / "shrink.py").write_text(source.replace("    layers = [", drawn))
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(folder / "kinds"))
    (folder / "other.yaml").write_text(RECIPE.replace("name: toy", "name: other"))
    assert run("apply", "other.yaml", "--jobs", "jobs2", "--progress", "none")[0] == 0
    code, out, _ = run("reproduce", "other-", "--jobs", "jobs2", "--json")
    document = json.loads(out)
    assert (code, document["same"], document["first"]) == (1, False, "shrink")
    assert document["steps"][0]["before"] == document["steps"][0]["now"]
    code, out, _ = run("reproduce", "other-", "--jobs", "jobs2", "--keep")
    assert code == 1
    assert (
        "`shrink` is the first step that differs\nchanges since then that are in no key: none that are recorded\n"
        in out
    )
    (kept,) = (folder / "jobs2").glob(".reproduce*")
    assert out.endswith(f"what was made is in {kept.relative_to(folder)}\n")


@pytest.mark.nightly
def test_another_processor_is_named(run: Run, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums may be rounded otherwise under the same key: what differs and where it was made stand together."""
    made = Job.records.__get__
    calls: list[Job] = []

    def elsewhere(job: Job) -> dict[str, Record]:
        calls.append(job)
        if len(calls) == 1:
            return dict(made(job))
        return {
            id: replace(r, digest="0" * 64, environment={**r.environment, "cpu": "other", "threads": 64})
            for id, r in made(job).items()
        }

    monkeypatch.setattr(Job, "records", property(elsewhere))
    code, out, _ = run("reproduce", job)
    assert code == 1
    last = out.splitlines()[-1]
    assert last.startswith("changes since then that are in no key: threads ")
    assert last.endswith(f" → 64; processor {environment.cpu_model()} → other")


@pytest.mark.nightly
def test_a_job_that_missed_its_gate_can_be_reproduced(run: Run, folder: Path) -> None:
    assert run("apply", "toy.yaml", "--set", "points=9", "--progress", "none")[0] == 3
    code, out, _ = run("reproduce", "toy-")
    assert code == 0
    assert out.endswith(": all 3 steps gave the same bytes\n")
