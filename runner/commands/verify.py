"""`runner verify`: hash every file of a job again and compare it with the records."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.commands import options
from runner.errors import StoreError


@dataclass(frozen=True)
class Options:
    job: str
    jobs: Path
    allowed_signers: str | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument(
        "--allowed-signers", metavar="FILE", help="also check the signature against this allowed signers file of ssh"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.job, options.jobs_folder(args), args.allowed_signers, args.json)


def run(opts: Options) -> int:
    from runner.api.jobs import Job
    from runner.job import provenance, signing, verification

    job = Job(opts.job, opts.jobs)
    checks = job.verify()
    signature = provenance.signature(job.path)
    if opts.allowed_signers is not None:
        signer, reason = signing.check(job.path, opts.allowed_signers)
        checks.append(verification.Check("signature", reason))
        signed = f"yes, by {signer}" if signer else "not by an allowed signer"
    else:
        signed = f"yes, {signature}, unchecked (`--allowed-signers` checks it)" if signature else "no"
    wrong = [check for check in checks if check.reason is not None]
    if opts.json:
        document = {
            "job": job.id, "sound": not wrong, "signed": signature is not None, "checks": [asdict(c) for c in checks],
        }  # fmt: skip
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return StoreError.exit_code if wrong else 0
    for check in checks:
        if check.reason is not None:
            print(f"✗ {check.what}: {check.reason}")
        else:
            print(f"✓ {check.what}" if check.present else f"· {check.what}: not there")
    print(f"signed: {signed}")
    sound = sum(check.present and check.reason is None for check in checks)
    print(f"{job.id}: {f'{len(wrong)} of {len(checks)} checks failed' if wrong else f'all {sound} checks passed'}")
    return StoreError.exit_code if wrong else 0
