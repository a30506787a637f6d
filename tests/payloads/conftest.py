"""An S3 on loopback, spoken to over HTTP, that fails and dawdles as a test says; and the stores under test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from hookpost.storage import payloads
from hookpost.storage.payloads import ObjectStore
from tests.patience import PATIENCE_S


class S3:
    """One S3 with its faults. ``failing``: methods answered with 503; ``slow``: methods that wait until ``go`` is set;
    ``requests``: (method, name of the object, Range) in their order."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.failing: set[str] = set()
        self.slow: set[str] = set()
        self.go = threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path, environ.get("HTTP_RANGE")))
        if method in self.slow:
            self.go.wait(PATIENCE_S)
        if method in self.failing:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("content-length", "0")])
            return [b""]
        return self._app(environ, start_response)

    def client(self) -> Any:
        """What an operator's tools would see."""
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")

    def stop(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still is no store that dawdles."""
    monkeypatch.setattr(payloads, "REQUEST_S", PATIENCE_S)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The S3, well, with the credentials in the environment as an operator would give them."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    s3_server.go.clear()
    s3_server.requests.clear()
    yield s3_server
    s3_server.go.set()
    s3_server.failing.clear()
    s3_server.slow.clear()


@pytest.fixture
def bucket(s3: S3) -> str:
    """The URL of a fresh bucket's prefix."""
    name = f"b{uuid4().hex}"
    s3.client().create_bucket(Bucket=name)
    return f"s3://{name}/hookpost"


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Each kind of store, empty."""
    url = (tmp_path / "payloads").as_uri() if request.param == "folder" else request.getfixturevalue("bucket")
    return ObjectStore(url)
