"""`runner verify`: hash every file of a job again and hold it against the records."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from runner.commands import options
from runner.errors import StoreError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="an id, the beginning of one, or a job's folder")
    options.add_jobs(parser)
    parser.add_argument(
        "--allowed-signers", metavar="FILE", help="also check the signature, by those whom this file of ssh names"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from runner.job import provenance, signing, verification

    root, id = options.job_of(args)
    checks = verification.verify(root, id)
    signature = provenance.signature(root / id)
    if args.allowed_signers is not None:
        signer, reason = signing.check(root / id, args.allowed_signers)
        checks.append(verification.Check("signature", reason))
        signed = f"yes, by {signer}" if signer else "not by those who are allowed"
    else:
        signed = f"yes, {signature}, unchecked (`--allowed-signers` checks it)" if signature else "no"
    wrong = [check for check in checks if check.reason is not None]
    if args.json:
        document = {
            "job": id, "sound": not wrong, "signed": signature is not None, "checks": [asdict(c) for c in checks],
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
    print(f"{id}: {f'{len(wrong)} of {len(checks)} checks failed' if wrong else f'all {sound} checks passed'}")
    return StoreError.exit_code if wrong else 0
