"""Where we may connect to: addresses (N), ports and URLs (U), by the ids of the attack list."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.egress import EgressPolicy, UrlError, check_url, origin_of, split_url, verdict

EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
LOOPBACK = (ip_network("127.0.0.0/8"),)

NOT_PUBLIC = {
    "N1-loopback": "127.0.0.1",
    "N1-loopback-net": "127.254.1.1",
    "N3-v6-loopback": "::1",
    "N3-v6-any": "::",
    "N3-any": "0.0.0.0",
    "N4-mapped": "::ffff:127.0.0.1",
    "N4-mapped-hex": "::ffff:7f00:1",
    "N5-compatible": "::7f00:1",
    "N5-translated": "::ffff:0:7f00:1",
    "N5-isatap": "::5efe:7f00:1",
    "N6-nat64": "64:ff9b::7f00:1",
    "N6-nat64-public": "64:ff9b::808:808",
    "N6-nat64-local": "64:ff9b:1::7f00:1",
    "N7-6to4": "2002:7f00:1::",
    "N7-teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "N19-multicast": "224.0.0.1",
    "N19-broadcast": "255.255.255.255",
    "N19-v6-multicast": "ff02::1",
    "N19-class-e": "240.0.0.1",
    "ten": "10.0.0.1",
    "cgnat": "100.64.0.1",
    "172": "172.31.255.255",
    "192-168": "192.168.1.1",
    "ietf": "192.0.0.9",
    "doc": "203.0.113.5",
    "bench": "198.18.0.1",
    "6to4-relay": "192.88.99.1",
    "ula": "fd00::1",
    "site-local": "fec0::1",
    "srv6": "5f00::1",
    "doc-v6": "3fff::1",
    "discard": "100::1",
    "discard-2": "100:0:0:1::1",
    "orchid": "2001:20::1",
}
METADATA = {
    "N2": "169.254.169.254",
    "N4-mapped": "::ffff:169.254.169.254",
    "N6-nat64": "64:ff9b::a9fe:a9fe",
    "N6-nat64-local": "64:ff9b:1::a9fe:a9fe",
    "N7-6to4": "2002:a9fe:a9fe::",
    "N5-compatible": "::a9fe:a9fe",
    "N18-azure": "168.63.129.16",
    "N18-alibaba": "100.100.100.200",
    "N18-aws": "fd00:ec2::254",
    "N18-gcp": "fd20:ce::254",
    "N20-link-local": "fe80::1",
    "N20-zone": "fe80::1%eth0",
}


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC.keys())
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert verdict(address, ()) is not None


@pytest.mark.parametrize("address", METADATA.values(), ids=METADATA.keys())
def test_no_allow_list_opens_the_metadata_services(address: str) -> None:
    assert verdict(address, EVERYTHING) == "link-local or metadata service address"


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert verdict(address, ()) is None


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2000::/3") | st.ip_addresses(v=6))
def test_what_python_takes_for_private_is_never_allowed(address: object) -> None:
    """Python's table drifts from release to release; wherever it is the stricter one, ours has to follow."""
    if verdict(str(address), ()) is None:
        assert (getattr(address, "ipv4_mapped", None) or address).is_global  # type: ignore[attr-defined]


def test_an_allowed_network_opens_itself_only_mapped_form_included() -> None:
    assert verdict("127.0.0.1", LOOPBACK) is None
    assert verdict("::ffff:127.0.0.1", LOOPBACK) is None
    assert verdict("::1", LOOPBACK) is not None
    assert verdict("10.0.0.1", LOOPBACK) is not None


def test_n6_an_allowed_nat64_prefix_is_judged_by_the_address_behind_it() -> None:
    allow = (ip_network("64:ff9b::/96"),)
    assert verdict("64:ff9b::808:808", allow) is None
    assert verdict("64:ff9b::7f00:1", allow) is not None
    assert verdict("64:ff9b::a9fe:a9fe", allow) is not None


@pytest.mark.parametrize("text", ["", "example.com", "127.1", "0x7f.1", "2130706433", "1.2.3.4:80", "[::1]"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert verdict(text, EVERYTHING) == "not an IP address"


def test_ports_are_80_443_and_unprivileged_ones_less_the_denied() -> None:
    policy = EgressPolicy(deny_ports=frozenset({5432}))
    allowed = [
        port for port in (0, 1, 22, 25, 79, 80, 443, 1023, 1024, 5432, 8080, 65535, 65536) if policy.port_allowed(port)
    ]
    assert allowed == [80, 443, 1024, 8080, 65535]


REFUSED = {
    "N1": ["http://127.0.0.1/", "http://127.254.1.1/"],
    "N2": ["http://169.254.169.254/latest/meta-data/"],
    "N3": ["http://[::1]/", "http://[::]/", "http://0.0.0.0/", "http://0/"],
    "N4": ["http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::ffff:169.254.169.254]/"],
    "N5": ["http://[::7f00:1]/", "http://[::ffff:0:7f00:1]/", "http://[::5efe:7f00:1]/"],
    "N6": ["http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::7f00:1]/"],
    "N7": ["http://[2002:7f00:1::]/", "http://[2001:0:1::1]/"],
    "N8": ["http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://0x7f.1/"],
    "N9": ["http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://ⅼocalhost/"],
    "N10": ["http://localhost/", "http://localhost./", "http://LOCALHOST/", "http://foo.localhost/"],
    "N10b": ["http://ip6-localhost/", "http://localhost.localdomain/"],
    "N17": ["http://metadata.google.internal/", "http://METADATA.goog./", "http://instance-data/"],
    "N18": ["http://168.63.129.16/", "http://100.100.100.200/", "http://[fd00:ec2::254]/", "http://[fd20:ce::254]/"],
    "N19": ["http://224.0.0.1/", "http://255.255.255.255/", "http://[ff02::1]/", "http://240.0.0.1/"],
    "N20": ["http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[fe80::1]/"],
    "U1": ["http://evil.com#@127.0.0.1/", "http://127.0.0.1#@evil.com/", "http://evil.com\\@127.0.0.1/"],
    "U1b": ["http://a@b@c/", "http://user:pw@host.example/", "http://host.example/#frag"],
    "U2": [f"http://host.example:{port}/" for port in ("0", "99999", "-1", "0080", "8０", "", "80a", "22")],
    "U3": [
        " http://a.example/",
        "http://a.example/ ",
        "http://a.example/\t",
        "http://a.example/\n",
        "http://a\0.example/",
    ],
    "U3b": ["http://a.example/\r\nX-Evil: 1", "http://a.example/a b", "http://a.example/\x7f"],
    "U5": ["http://a..b/", f"http://{'a' * 64}.example/", f"http://{'a.' * 200}example/", "http://-/", "http://xn--/"],
    "U5b": [
        "http:///path",
        "http://",
        "http://./",
        "http://a%41.example/",
        "http://[::1/",
        "http://::1/",
        "http://a b/",
    ],
    "U6": ["file:///etc/passwd", "gopher://a.example/", "dict://a.example/", "ftp://a.example/", "data:,x"],
    "U6b": ["unix:///var/run/docker.sock", "javascript:alert(1)", "//a.example/", "a.example", "http:/a.example", ""],
    "U7": ["http://a.example/" + "x" * 51_200, "http://a.example/" + "x" * 2032],
    "path": ["http://a.example/é", "http://a.example/?q=😀"],
}


@pytest.mark.parametrize(("name", "url"), [(name, url) for name, urls in REFUSED.items() for url in urls])
def test_a_bad_url_is_refused_with_advice(name: str, url: str) -> None:
    with pytest.raises(UrlError) as refused:
        check_url(url, EgressPolicy())
    assert len(str(refused.value)) > 20


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://A.Example", "http://a.example/"),
        ("https://a.example:443/x", "https://a.example/x"),
        ("http://a.example:80", "http://a.example/"),
        ("http://a.example:443/", "http://a.example:443/"),
        ("https://a.example.:8443?q=1", "https://a.example:8443/?q=1"),
        ("https://Bücher.example/ä".replace("ä", "%C3%A4"), "https://xn--bcher-kva.example/%C3%A4"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://a.example/%0d%0aX:%201", "https://a.example/%0d%0aX:%201"),
        ("https://a.example/../../x/%2e%2e/y", "https://a.example/../../x/%2e%2e/y"),
        ("https://a.example/user@host?a=b@c", "https://a.example/user@host?a=b@c"),
        ("https://[2606:4700:0:0::1111]:8443/", "https://[2606:4700::1111]:8443/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://under_score.example/", "https://under_score.example/"),
        ("https://а.example/", "https://xn--80a.example/"),
    ],
)
def test_a_good_url_is_normalised_and_stays_so(url: str, normal: str) -> None:
    assert check_url(url, EgressPolicy()) == normal
    assert check_url(normal, EgressPolicy()) == normal


def test_localhost_and_loopback_are_accepted_where_loopback_is_allowed() -> None:
    policy = EgressPolicy(allow_networks=LOOPBACK)
    assert check_url("http://localhost:8080", policy) == "http://localhost:8080/"
    assert check_url("http://127.0.0.1:8080/x", policy) == "http://127.0.0.1:8080/x"
    assert check_url("http://①②⑦.⓪.⓪.①:8080/", policy) == "http://127.0.0.1:8080/"
    for url in ("http://ip6-localhost/", "http://[::1]/", "http://127.1/", "http://169.254.169.254/"):
        with pytest.raises(UrlError):
            check_url(url, policy)


def test_https_only_and_denied_ports_are_enforced() -> None:
    with pytest.raises(UrlError, match="https only"):
        check_url("http://a.example/", EgressPolicy(https_only=True))
    with pytest.raises(UrlError, match="port 8443"):
        check_url("https://a.example:8443/", EgressPolicy(deny_ports=frozenset({8443})))


def test_a_url_is_taken_apart_into_what_libcurl_will_use() -> None:
    target = split_url("HTTPS://A.Example:8443/x?y")
    assert (target.scheme, target.host, target.port, target.literal) == ("https", "a.example", 8443, False)
    assert split_url("http://[::1]/").literal and split_url("http://127.0.0.1/").literal


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.Example/x?y", "https://a.example"),
        ("http://a.example:8080/", "http://a.example:8080"),
        ("http://a.example.:80", "http://a.example"),
        ("http://[2001:DB8::1]/", "http://[2001:db8::1]"),
        ("https://bücher.example/a//b", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_scheme_host_and_port_and_nothing_else(url: str, origin: str) -> None:
    assert origin_of(split_url(url).url) == origin
