"""With roots to trust, the client speaks TLS, to this machine too."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tallystick import Client, Internal, RetryPolicy, TallystickError, Unavailable
from tests.unit.sdk.support import KEY


def failure(address: str, tls_ca: Path | None) -> TallystickError:
    """How a call fails: Internal (no such method) if it reached the server, Unavailable if it did not."""
    retry = RetryPolicy(timeout=1)
    with Client(KEY, metering=address, tls_ca=tls_ca, retry=retry) as client:
        with pytest.raises(TallystickError) as raised:
            client.balance("cus_1")
        return raised.value


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_roots_mean_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command: list[str | Path] = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", key, "-out", certificate, "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        identity = (key.read_bytes(), certificate.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([identity]))
        server.start()
        address = f"localhost:{port}"
        assert isinstance(failure(address, certificate), Internal)
        assert isinstance(failure(address, None), Unavailable)
        server.stop(None).wait()
