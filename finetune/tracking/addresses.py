"""Ask whether a server answers, within seconds."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit

PROBE_S = 4.0


def is_answering(address: str, path: str = "") -> bool:
    """Return whether a server answers at all, be it with an error, as one behind a login does.

    Args:
        address: begins with http:// or https://; a user and a password in it are not sent.
        path: below the address.
    """
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, host, parts.path.rstrip("/") + path, "", ""))
    try:
        with urllib.request.urlopen(url, timeout=PROBE_S):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code not in (502, 503, 504)  # of a proxy whose server is away
    except (OSError, ValueError, http.client.HTTPException):
        return False


def is_address(text: str) -> bool:
    """Return whether a text is the address of a web server."""
    return text.startswith(("http://", "https://"))
