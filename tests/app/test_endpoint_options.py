"""Options of `hookpost endpoints headers` and `tls`, as what is asked of the API."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from hookpost.app.client import ClientError
from hookpost.app.endpoint_options import headers, tls


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_text("of the file\n")
    return path


def of_tls(ca: Path | None = None, cert: Path | None = None, key: Path | None = None, **flags: bool) -> dict[str, Any]:
    return tls(ca, cert, key, **{"remove_ca": False, "remove_cert": False, "clear": False, **flags})


def test_headers_are_set_and_taken_away_by_name() -> None:
    assert headers(["x-team: a:b", "x-b:c"], [], ["x-old"], clear=False) == {
        "headers": {"x-team": "a:b", "x-b": "c", "x-old": None}
    }
    assert headers([], [], [], clear=True) == {"headers": None}
    assert headers([], [], [], clear=False) == {}, "nothing is asked for: it is shown"


def test_a_secret_comes_from_a_file_or_from_standard_input(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped\n"))
    assert headers([], [f"authorization: @{file}", "x-pin: -"], [], clear=False) == {
        "headers": {
            "authorization": {"value": "of the file", "secret": True},
            "x-pin": {"value": "piped", "secret": True},
        }
    }
    with pytest.raises(ClientError, match="others can see arguments"):
        headers([], ["authorization: Bearer s3cret"], [], clear=False)


@pytest.mark.parametrize(
    ("given", "removed", "clear"),
    [(["no colon"], [], False), ([": value"], [], False), (["x: a", "x: b"], [], False), (["x: a"], ["x"], False),
     (["x: a"], [], True)],
)  # fmt: skip
def test_headers_that_contradict_each_other_are_refused(given: list[str], removed: list[str], clear: bool) -> None:
    with pytest.raises(ClientError):
        headers(given, [], removed, clear=clear)


def test_what_of_tls_is_not_named_stays(file: Path) -> None:
    text = "of the file\n"
    assert of_tls() == {}
    assert of_tls(ca=file) == {"tls": {"ca_pem": text}}
    assert of_tls(cert=file, key=file) == {"tls": {"client_cert_pem": text, "client_key_pem": text}}
    assert of_tls(ca=file, remove_cert=True) == {
        "tls": {"ca_pem": text, "client_cert_pem": None, "client_key_pem": None}
    }
    assert of_tls(remove_ca=True) == {"tls": {"ca_pem": None}}
    assert of_tls(clear=True) == {"tls": None}


def test_tls_that_contradicts_itself_is_refused(file: Path) -> None:
    for wrong in (
        lambda: of_tls(cert=file),
        lambda: of_tls(key=file),
        lambda: of_tls(ca=file, remove_ca=True),
        lambda: of_tls(cert=file, key=file, remove_cert=True),
        lambda: of_tls(ca=file, clear=True),
    ):
        with pytest.raises(ClientError):
            wrong()
