"""Sign provenance.json, and check signatures, with ssh keys (`ssh-keygen -Y`, PROTOCOL.sshsig)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from runner.errors import MachineError, UsageError
from runner.job import provenance

NAMESPACE = "runner"  # of signatures: one of a git commit is not valid for a job


def sign(job: Path, key: str) -> Path:
    """Sign the statement of a job with a private key, or with the public key of one that ssh-agent holds."""
    path = job / provenance.NAME
    if not path.is_file():
        raise UsageError(f"{job.name} has no {provenance.NAME}", "apply its recipe to the end first")
    made = job / provenance.SIGNATURES[0]
    made.unlink(missing_ok=True)
    done = _ssh_keygen(["-Y", "sign", "-q", "-n", NAMESPACE, "-f", key, str(path)])
    if done.returncode != 0 or not made.is_file():
        raise UsageError(f"ssh-keygen did not sign with {key}: {_last_line(done)}", "name a private key with `--key`")
    return made


def check(job: Path, allowed: str) -> tuple[str | None, str | None]:
    """Return (signer, None), or (None, why the signature is not valid). `allowed` is a file of allowed signers."""
    signature = job / provenance.SIGNATURES[0]
    if not signature.is_file():
        return None, "it is missing"
    if not os.path.isfile(allowed):
        raise UsageError(f"there is no file {allowed}", "each of its lines is: NAME KEYTYPE KEY, see ssh-keygen(1)")
    found = _ssh_keygen(["-Y", "find-principals", "-s", str(signature), "-f", allowed])
    names = found.stdout.decode(errors="replace").splitlines()
    if found.returncode != 0 or not names:
        return None, f"it was made with a key that {allowed} does not have"
    statement = (job / provenance.NAME).read_bytes()
    arguments = ["-Y", "verify", "-n", NAMESPACE, "-I", names[0], "-f", allowed, "-s", str(signature)]
    done = _ssh_keygen(arguments, statement)
    if done.returncode == 0:
        return names[0], None
    return None, f"it is not one of {provenance.NAME}: {_last_line(done)}"


def _ssh_keygen(arguments: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MachineError("ssh-keygen is not installed", "install OpenSSH 8.2 or later")
    return subprocess.run([program, *arguments], input=data, capture_output=True, check=False)


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it ended with {done.returncode}"
