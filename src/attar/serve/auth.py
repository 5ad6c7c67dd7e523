"""API keys."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import urlsplit

from attar.errors import UserError
from attar.serve.errors import ApiError

OPEN = ("/", "/healthz", "/readyz")  # paths that anybody may ask


class Keys:
    """Who may ask: holders of a key; without keys this machine alone, or `anyone`."""

    def __init__(self, keys: Sequence[str], anyone: bool) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._anyone = anyone

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise ApiError unless whoever sent these headers may ask for this path."""
        if path in OPEN:
            return
        if self._digests:
            self._check_key(headers.get(b"authorization", b"").decode("latin-1"))
        elif not self._anyone:
            check_page(*(headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin")))

    def _check_key(self, authorization: str) -> None:
        """Every key is compared, in constant time, whichever one fits."""
        scheme, _, given = authorization.partition(" ")
        digest = sha256(given.strip().encode("utf-8", "replace")).digest()
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            what = "that API key is not known" if given else "an API key is needed"
            raise ApiError(
                401, f"{what}; send it as `Authorization: Bearer KEY`", "invalid_api_key"
            )


def check_page(host: str, origin: str) -> None:
    """Raise ApiError where a browser asks for a page that is not this server's own.

    Pages from elsewhere reach this machine's ports too: by its address, which their Origin tells,
    or by a name of their own that was pointed here, which the Host tells.
    """
    if host and not _is_local(_name(f"//{host}")):
        raise ApiError(
            403,
            f"{host} is no name of this machine. Start the server with API keys, or with --anyone",
            "foreign_host",
        )
    if origin and origin.lower().partition("://")[2] != host.lower():
        raise ApiError(403, "pages from elsewhere may not ask here", "foreign_origin")


def _name(address: str) -> str:
    with suppress(ValueError):
        return urlsplit(address).hostname or ""
    return ""


def _is_local(name: str) -> bool:
    with suppress(ValueError):
        return ip_address(name).is_loopback
    return name.lower() == "localhost"


def read_keys(lines: Iterable[str]) -> tuple[str, ...]:
    """Keys, one a line; empty lines and those that begin with # are none."""
    kept = (line.strip() for line in lines)
    keys = tuple(line for line in kept if line and not line.startswith("#"))
    short = [key for key in keys if len(key) < 8]
    if short or any(not key.isascii() or " " in key for key in keys):
        raise UserError("an API key is at least 8 characters of plain ASCII without spaces")
    return keys


def check_host(host: str, keys: Sequence[str], anyone: bool) -> None:
    """Raise UserError where anybody beyond this machine could ask without a key."""
    if _is_local(host) or keys or anyone:
        return
    raise UserError(
        f"listening on {host} lets others use the models, and there are no API keys. Give keys "
        "with --keys FILE or ATTAR_API_KEYS, or say --anyone"
    )
