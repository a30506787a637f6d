"""An endpoint's own TLS as fields of a form, and what a form changes of it, as the API takes it. Pure.

The API shows certificates by what they say and never the key, so the fields are always empty when a page is shown: an
empty one leaves what there is.
"""

from __future__ import annotations

from typing import Any

from hookpost.web.dashboard.forms import Form


def change(form: Form) -> dict[str, Any]:
    """Empty where nothing changes; what is entered wins over the box that takes away."""
    changed: dict[str, Any] = {}
    ca, cert, key = (form.optional(name) for name in ("tls_ca", "tls_cert", "tls_key"))
    if ca is not None or form.is_set("tls_ca_remove"):
        changed["ca_pem"] = ca
    if cert is not None or key is not None or form.is_set("tls_cert_remove"):
        changed |= {"client_cert_pem": cert, "client_key_pem": key}
    return changed
