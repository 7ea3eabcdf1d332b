"""A local server that speaks S3 (moto), with one bucket named `bucket`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

SECRET = "secret-of-the-store"


@contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[str]:
    """Yield the address of a server, for as long as it is needed."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '{host}', '-p', '{port}'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://{host}:{port}"
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json").close()
                break
            except OSError:
                time.sleep(0.1)
        request = urllib.request.Request(f"{url}/bucket", method="PUT", headers={"Authorization": "AWS4 x/x/x/s3/x"})
        urllib.request.urlopen(request).close()
        try:
            yield url
        finally:
            process.kill()


def credentials(url: str) -> dict[str, str]:
    """Return the variables by which s3fs finds the server."""
    return {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url}  # fmt: skip


def environment(url: str) -> dict[str, str]:
    """Return the environment of this process with the credentials of the server."""
    return {**os.environ, **credentials(url)}
