"""Where an API caller may make this server connect to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.domain.egress import Endpoint, Policy, read
from retinue.errors import EgressDenied

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
CLOSED = [
    # this machine, and what stands for it
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1",
    "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:7f00:1::5",
    # private networks, and what carries their addresses
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12::1",
    "::ffff:10.0.0.1", "::ffff:192.168.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "fec0::1",
    "2001:0:a00:1::", "2001::f5ff:fffe",
    # link-local and the metadata services of clouds
    "169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "100.100.100.200", "192.0.0.192", "168.63.129.16",
    # no single machine, or none at all
    "224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1", "ff02::1", "198.18.0.1",
    "192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "192.88.99.1",
]  # fmt: skip


def test_the_public_internet_is_open() -> None:
    for address in PUBLIC:
        assert Policy().check("example.org", [address]) == [ipaddress.ip_address(address)]


@pytest.mark.parametrize("address", CLOSED)
def test_everything_else_is_closed(address: str) -> None:
    with pytest.raises(EgressDenied, match="public Internet"):
        Policy().check("example.org", [address])


def test_one_closed_address_among_public_ones_closes_the_host() -> None:
    with pytest.raises(EgressDenied, match=r"10\.0\.0\.1"):
        Policy().check("example.org", ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(EgressDenied, match="no address"):
        Policy().check("example.org", [])


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_the_same_in_every_dress(address: ipaddress.IPv4Address) -> None:
    def open_(form: str) -> bool:
        try:
            return bool(Policy().check("h", [form]))
        except EgressDenied:
            return False

    number = int(address)
    plain = open_(str(address))
    if plain:
        assert address.is_global
    assert open_(f"::ffff:{address}") == plain
    assert open_(str(ipaddress.IPv6Address((0x64FF9B << 96) | number))) == plain
    assert open_(str(ipaddress.IPv6Address((0x2002 << 112) | number << 80))) == plain
    assert not open_(str(ipaddress.IPv6Address(number)))


def test_the_operator_opens_hosts_and_networks() -> None:
    policy = Policy.of(["10.1.0.0/16", "Agents.Internal", "fd00::/8", "127.0.0.1", "localhost"])
    assert policy.check("anything", ["10.1.2.3", "fd00::5", "127.0.0.1"])
    assert policy.check("agents.internal", ["10.9.9.9", "192.168.7.7"])
    assert policy.check("localhost", ["127.0.0.1", "::1"])
    for host, address in (
        ("other.internal", "10.9.9.9"),
        ("x.agents.internal", "10.9.9.9"),
        ("localhost.evil.org", "127.0.0.2"),
    ):
        with pytest.raises(EgressDenied):
            policy.check(host, [address])


def test_a_hosts_name_does_not_open_what_has_credentials() -> None:
    policy = Policy.of(["agents.internal"])
    for address in ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "168.63.129.16",
                    "0.0.0.0", "224.0.0.1", "fd00:ec2::254"):  # fmt: skip
        with pytest.raises(EgressDenied):
            policy.check("agents.internal", [address])
    assert Policy.of(["169.254.0.0/16"]).check("x", ["169.254.1.1"])


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.0/33", "10.0.0.1/8", "0x7f.1", "http://x", "a b", "", "*.org", "host:80", "-x"],
)
def test_an_allow_list_with_something_else_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        Policy.of([entry])


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://example.org", Endpoint("http", "example.org", 80, "")),
        ("HTTPS://Example.ORG./a/b/", Endpoint("https", "example.org", 443, "/a/b")),
        ("http://8.8.8.8:9000/x", Endpoint("http", "8.8.8.8", 9000, "/x")),
        ("http://[2606:4700::1111]:81", Endpoint("http", "2606:4700::1111", 81, "")),
        ("http://[::FFFF:8.8.8.8]/", Endpoint("http", "::ffff:808:808", 80, "")),
        ("https://xn--bcher-kva.example", Endpoint("https", "xn--bcher-kva.example", 443, "")),
    ],
)
def test_an_endpoint_is_read_in_one_way(url: str, endpoint: Endpoint) -> None:
    found = read(url)
    assert (found.scheme, found.port, found.path) == (
        endpoint.scheme,
        endpoint.port,
        endpoint.path,
    )
    if ":" in found.host:
        assert ipaddress.ip_address(found.host) == ipaddress.ip_address(endpoint.host)
    else:
        assert found.host == endpoint.host
    assert read(found.url) == found


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "example.org", "//example.org", "http:", "http://", "http:///x", "http://:80/",
        "file:///etc/passwd", "ftp://example.org", "gopher://example.org", "javascript:1",
        "http://a@example.org", "http://a:b@example.org", "http://@example.org",
        "http://example.org@127.0.0.1/", "http://127.0.0.1\\@example.org/",
        "http://example.org\\.evil.org/", "http://example.org/?q", "http://example.org?",
        "http://example.org/#f", "http://example.org#@evil.org/", "http://example.org:0/",
        "http://example.org:65536/", "http://example.org:x/", "http://example.org:-1/",
        "http://127.1/", "http://0x7f.1/", "http://0x7f000001/", "http://2130706433/",
        "http://017700000001/", "http://0177.0.0.1/", "http://127.0.0.01/", "http://1.2.3.4.5/",
        "http://127.0.0.1.0x1/", "http://256.0.0.1/", "http://a.0x/", "http://[::1", "http://[x]/",
        "http://[fe80::1%25eth0]/", "http://[::1]x/", "http://a..b/", "http://.a/", "http://-a/",
        "http://exam ple.org/", "http://example.org/\n", "\thttp://example.org", "http://a%2eb/",
        "http://\uff11\uff12\uff17.0.0.1/", "http://b\u00fccher.example/", "http://a\u3002b/",
        "http://" + "a" * 64 + ".org/", "http://" + "a." * 127 + "org/", "http://x/" + "a" * 3000,
    ],
)  # fmt: skip
def test_what_another_reader_could_take_differently_is_no_endpoint(url: str) -> None:
    with pytest.raises(EgressDenied):
        read(url)


@given(st.text(max_size=60))
def test_nothing_else_than_a_refusal_is_raised(text: str) -> None:
    for url in (text, f"http://{text}", f"http://example.org/{text}"):
        try:
            found = read(url)
        except EgressDenied:
            continue
        assert read(found.url) == found
