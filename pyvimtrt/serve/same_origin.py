"""Which requests come from this server's own page, or from no page at all.

A page of another site can have a browser send a request here, with its user's reach into networks that the site has
not. The browser says so, and the page cannot forge it: ``Sec-Fetch-Site``, where the connection is secure or local;
``Origin``, to be compared with ``Host``, which a proxy may have changed. A header of one's own, as this server's page
sends, cannot be sent to another site without asking it first (CORS), and this server never agrees.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

PAGE_HEADER = "x-pyvimtrt-page"
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sent a request for the page of another site. Names of headers are in lower case."""
    origin = headers.get("origin")
    if origin is None:
        return False
    if (site := headers.get("sec-fetch-site")) is not None:
        return site.strip().lower() not in ("same-origin", "none")
    if PAGE_HEADER in headers:
        return False
    scheme, _, authority = origin.strip().lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme, "")
    return not authority or _split(authority, default) != _split(headers.get("host", ""), default)


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    return _split(host, "")[0]


def is_loopback(name: str) -> bool:
    """Return whether a name is this machine's own, which no other machine can reach."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _split(host: str, default_port: str) -> tuple[str, str]:
    """Return name and port of a host, as they compare: in lower case, without brackets and a last dot."""
    found = _HOST.fullmatch(host.strip().lower())
    if found is None:
        return host, ""
    return found[1].strip("[]").removesuffix("."), found[2] or default_port
