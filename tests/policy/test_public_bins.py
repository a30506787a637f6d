"""Endpoints at hosts where everybody reads along."""

from __future__ import annotations

import pytest

from hookpost.policy.public_bins import warning_of


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("https://webhook.site/0197", True),
        ("https://WEBHOOK.site:8443/x?y=1", True),
        ("https://acme.free.beeceptor.com/", True),
        ("https://notwebhook.site/", False),
        ("https://webhook.site.example.com/", False),
        ("https://example.com/webhook.site", False),
        ("https://[2001:db8::1]/", False),
    ],
)
def test_a_public_bin_is_told_from_all_others_by_its_host(url: str, warned: bool) -> None:
    assert (warning_of(url) is not None) == warned
