"""Which requests say unmistakably where they begin, where they end and whom they are for (RFC 9112, sections 3, 6 and
11.2).

Two servers that read one request differently can be made to see two where the other sees one. llhttp, uvicorn's parser,
refuses two lengths, a length beside chunks, blanks before a colon, folded lines, bare line feeds and lengths that are
no plain numbers. What it lets pass is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
MOST_HEADERS = 128
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
    """Return the path and query that a request asks for. Raises BadRequestError for a head that two servers may read in
    two ways.
    """
    if version not in ("1.0", "1.1"):
        raise BadRequestError(f"this server speaks HTTP/1.1, not HTTP/{version}")
    if method == b"CONNECT":
        raise BadRequestError("this server is no proxy: CONNECT is not taken", "405 Method Not Allowed")
    codings = [value.strip(b" \t").lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (version == "1.0" or codings != [b"chunked"]):
        raise BadRequestError("the only Transfer-Encoding taken is chunked, in HTTP/1.1; send Content-Length instead")
    hosts = [value.strip(b" \t") for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise BadRequestError(f"a request has one Host header; this one has {len(hosts)}")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise BadRequestError("the Host header is not the name of a host")
    for name in _ONCE:
        if sum(name == other for other, _ in headers) > 1:
            raise BadRequestError(f"the header {name.decode()} may be sent once")
    return _path(method, target, hosts[0] if hosts else b"")


def _path(method: bytes, target: bytes, host: bytes) -> bytes:
    if b"#" in target:
        raise BadRequestError("a request's target has no fragment (#)")
    if target.startswith(b"/"):
        return target
    if target == b"*" and method == b"OPTIONS":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found is None or not _HOST.fullmatch(found[2]):
        raise BadRequestError("a request's target is a path such as /v2")
    default = b":" + _DEFAULT_PORTS[found[1].lower()]
    if host and found[2].lower().removesuffix(default) != host.lower().removesuffix(default):
        raise BadRequestError("the request's target names another host than its Host header")
    return found[3] if found[3].startswith(b"/") else b"/" + found[3]


def without_upgrade(version: str, method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the head of a request without the upgrade that it asks for: a server that does not take one reads the
    request as if it had not been asked.
    """
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            words = [word.strip(b" \t") for word in value.split(b",")]
            value = b", ".join(word for word in words if word.lower() not in _HOP_BY_HOP)
        if name not in _HOP_BY_HOP:
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
