"""Which requests say unmistakably where they begin, where they end and whom they are for.

Two servers that read one request differently can be made to see two where the other sees one (request smuggling,
RFC 9112, section 11.2). llhttp, the parser of httptools, refuses two lengths, a length beside chunks, blanks before a
colon, folded lines, bare line feeds and lengths that are no plain numbers. What it lets pass is refused here, by
functions of a request's version, method, target and headers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"(?i:(https?)://)([^/?]*)(/?[^\x00-\x20]*)")
_ONCE = (b"content-type", b"inference-header-content-length", b"authorization", b"x-api-key", b"origin")
_HOP_BY_HOP = frozenset({b"upgrade", b"http2-settings"})
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}


class BadRequestError(Exception):
    """A request that no server should try to understand; the connection ends with it."""

    def __init__(self, sentence: str, status: str = "400 Bad Request") -> None:
        super().__init__(sentence)
        self.status = status


def check_head(version: str, method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the path and query of a request. Raises BadRequestError for a head that servers may read in two ways."""
    _check_version(version)
    _check_method(method)
    _check_length(version, headers)
    host = _host(version, headers)
    _check_single(headers)
    return _path(method, target, host)


def _check_version(version: str) -> None:
    # RFC 9112, section 2.3: a minor version above 1 is no HTTP/1.1, and 0.9 has no version at all.
    if version not in ("1.0", "1.1"):
        raise BadRequestError(f"this server speaks HTTP/1.1, not HTTP/{version}")


def _check_method(method: bytes) -> None:
    # RFC 9110, section 9.3.6: CONNECT turns the connection into a tunnel, whose bytes are no requests.
    if method == b"CONNECT":
        raise BadRequestError("this server is no proxy: CONNECT is not taken", "405 Method Not Allowed")


def _check_length(version: str, headers: Headers) -> None:
    # RFC 9112, section 6.1: no Transfer-Encoding before HTTP/1.1. Section 6.3: chunked comes last, else the length
    # cannot be known; other codings, and chunked twice, are read differently by different servers.
    codings = [value.strip(b" \t").lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (version == "1.0" or codings != [b"chunked"]):
        raise BadRequestError("the only Transfer-Encoding taken is chunked, in HTTP/1.1; send Content-Length instead")


def _host(version: str, headers: Headers) -> bytes:
    """Return the host that a request names, nothing where one of HTTP/1.0 names none."""
    # RFC 9112, section 3.2: 400 for no Host in HTTP/1.1, for more than one, and for one that is no host.
    hosts = [value.strip(b" \t") for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise BadRequestError(f"a request has one Host header; this one has {len(hosts)}")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise BadRequestError("the Host header is not the name of a host")
    return hosts[0] if hosts else b""


def _check_single(headers: Headers) -> None:
    # RFC 9110, section 5.3: a field that is no list may not be sent twice; which one counts differs between servers.
    for name in _ONCE:
        if sum(name == other for other, _ in headers) > 1:
            raise BadRequestError(f"the header {name.decode()} may be sent once")


def _path(method: bytes, target: bytes, host: bytes) -> bytes:
    # RFC 9112, section 3.2: a target has no fragment.
    if b"#" in target:
        raise BadRequestError("a request's target has no fragment (#)")
    # RFC 9112, section 3.2.1: a path, the form of all but proxies.
    if target.startswith(b"/"):
        return target
    # RFC 9112, section 3.2.4: the server as a whole, for OPTIONS alone.
    if target == b"*" and method == b"OPTIONS":
        return target
    # RFC 9112, section 3.2.2: a whole address, which every server takes; its host is the request's host. A user in it
    # (RFC 9110, section 4.2.4) and another host than that of the Host header are signs of an attack.
    found = _ABSOLUTE.fullmatch(target)
    if found is None or not _HOST.fullmatch(found[2]):
        raise BadRequestError("a request's target is a path such as /v2")
    default = b":" + _DEFAULT_PORTS[found[1].lower()]
    if host and found[2].lower().removesuffix(default) != host.lower().removesuffix(default):
        raise BadRequestError("the request's target names another host than its Host header")
    return found[3] if found[3].startswith(b"/") else b"/" + found[3]


def without_upgrade(version: str, method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the head of a request without the upgrade that it asks for."""
    # RFC 9110, section 7.8: a server may ignore Upgrade, and then reads the request as if it had not been asked.
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            words = [word.strip(b" \t") for word in value.split(b",")]
            value = b", ".join(word for word in words if word.lower() not in _HOP_BY_HOP)
        if name not in _HOP_BY_HOP:
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
