"""provenance.json: the outputs, inputs and builder of a job, in a standard form that others can verify.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) with a SLSA provenance v1 predicate
(https://slsa.dev/provenance/v1). The subjects are the files of output/ with their sha256; of a job that makes no
checkpoint, the metrics of its steps. `runnerFiles1` is the digest of several files: sha256 over their names and
contents, as in plan.json. Times and the builder are only in runDetails, and no key or digest depends on them.

runner does not sign the file by itself. A detached signature is in the same folder, as provenance.json.sig, made by
`ssh-keygen -Y sign`, or as provenance.json.sigstore.json, made by `cosign sign-blob --bundle`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import runner
from runner.contracts.step_kind import METRICS_ONLY
from runner.job import files
from runner.job.directory import JobDirectory, read_json
from runner.job.entries import StoreEntry
from runner.plan import lock_file
from runner.plan.types import Plan, PlannedStep
from runner.recipe import secrets
from runner.recipe.syntax import yaml_text

NAME = "provenance.json"
SIGNATURES = (f"{NAME}.sig", f"{NAME}.sigstore.json")
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:runner:job:1"
LOCAL = "urn:runner:builder:local"
Made = Sequence[tuple[PlannedStep, StoreEntry]]


def write(plan: Plan, directory: JobDirectory, made: Made, started: str, finished: str) -> None:
    """Write the statement of a job. One with the same content stays, and with it its signature."""
    document = statement(plan, made, started, finished, read_json(directory.path / "environment.json"))
    path = directory.path / NAME
    if _without_times(read_json(path)) == _without_times(document):
        return
    for name in SIGNATURES:  # they sign the replaced statement
        (directory.path / name).unlink(missing_ok=True)
    files.write_atomic(path, files.pretty(document))


def statement(plan: Plan, made: Made, started: str, finished: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the full statement. `made` are the steps that have results, `environment` is environment.json."""
    machine = {name: environment.get(name) for name in ("python", "platform", "cpu", "threads", "device")}
    return {
        "_type": STATEMENT,
        "subject": subjects(made),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": _recipe(plan), "device": plan.device},
                "internalParameters": {"plan": plan.key, "seed": plan.recipe.seed, "machine": machine},
                "resolvedDependencies": _dependencies(plan),
            },
            "runDetails": {
                "builder": {"id": builder(os.environ), "version": {"runner": runner.__version__}},
                "metadata": {"invocationId": plan.job_id, "startedOn": started, "finishedOn": finished},
                "byproducts": [
                    {
                        "name": f"steps/{step.folder}",
                        "digest": {"runnerFiles1": entry.record.digest},
                        "annotations": {"kind": step.kind, "key": step.key, "made": entry.record.finished},
                    }
                    for step, entry in made
                ],
            },
        },
    }


def subjects(made: Made) -> list[dict[str, Any]]:
    """Return the files of the last checkpoint; where there is none, the metrics of every step."""
    checkpoints = [entry for step, entry in made if step.produces != METRICS_ONLY]
    if checkpoints:
        return [
            {"name": f"output/{fact.path}", "digest": {"sha256": fact.sha256}} for fact in checkpoints[-1].record.files
        ]
    return [
        {
            "name": f"steps/{step.folder}/metrics.json",
            "digest": {"sha256": files.sha256(entry.path / "metrics.json")},
        }
        for step, entry in made
    ]


def builder(environ: Mapping[str, str]) -> str:
    """Return the URI of the builder: the workflow on GitHub Actions or GitLab CI, else LOCAL."""
    if environ.get("GITHUB_ACTIONS") == "true" and "GITHUB_WORKFLOW_REF" in environ:
        return f"{environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{environ['GITHUB_WORKFLOW_REF']}"
    if environ.get("GITLAB_CI") == "true" and "CI_PROJECT_URL" in environ:
        return f"{environ['CI_PROJECT_URL']}/-/blob/{environ.get('CI_COMMIT_SHA', 'HEAD')}/.gitlab-ci.yml"
    return LOCAL


def signature(job: Path) -> str | None:
    """Return the name of the signature file of the statement; None if it is not signed."""
    return next((name for name in SIGNATURES if (job / name).is_file()), None)


def _recipe(plan: Plan) -> dict[str, Any]:
    """Describe the recipe by its digest only, as its params may be confidential."""
    digest = hashlib.sha256(yaml_text.dump(plan.recipe.document).encode()).hexdigest()
    return {"name": plan.recipe.name, "uri": "recipe.yaml", "digest": {"sha256": digest}}


def _dependencies(plan: Plan) -> list[dict[str, Any]]:
    """Return models, data, parent recipes, and the packages that affect the bytes of results."""
    found: list[dict[str, Any]] = []
    for name, model in plan.given().items():
        digest = {"gitCommit": model.commit} if model.commit else {"runnerFiles1": model.digest}
        place = f"pkg:huggingface/{model.source}@{model.commit}" if model.commit else model.source
        found.append({"name": name, "uri": place, "digest": digest})
    for name, data in sorted(plan.data.items()):
        digest = {"gitCommit": data.commit} if data.commit else {"runnerFiles1": data.digest}
        found.append({"name": f"data/{name}", "uri": data.spec.source, "digest": digest})
    found += [
        {"name": "recipe", "uri": parent.name, "digest": {"sha256": parent.digest}} for parent in plan.recipe.parents
    ]
    packages = lock_file.packages([plan]).items()
    found += [{"name": name, "uri": f"pkg:pypi/{name}@{version}"} for name, version in sorted(packages)]
    known = secrets.values(plan.recipe.document)
    return [{**entry, "uri": secrets.hide(entry["uri"], known)} for entry in found]


def _without_times(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the parts of a statement that do not change from run to run."""
    predicate = document.get("predicate", {})
    return document.get("subject"), predicate.get("buildDefinition"), predicate.get("runDetails", {}).get("byproducts")
