"""API keys."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from hashlib import sha256

from attar.errors import UserError
from attar.serve.errors import ApiError

LOCAL = ("127.0.0.1", "::1", "localhost")
OPEN = ("/", "/healthz", "/readyz")  # paths that ask for no key


class Keys:
    """The keys that a server takes; none at all lets everybody in."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def check(self, path: str, authorization: str) -> None:
        """Raise ApiError unless the header holds one of the keys, or the path asks for none.

        Every key is compared, in constant time, whichever one fits.
        """
        if not self._digests or path in OPEN:
            return
        scheme, _, given = authorization.partition(" ")
        digest = sha256(given.strip().encode("utf-8", "replace")).digest()
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            what = "that API key is not known" if given else "an API key is needed"
            raise ApiError(
                401, f"{what}; send it as `Authorization: Bearer KEY`", "invalid_api_key"
            )


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
    if host in LOCAL or host.startswith("127.") or keys or anyone:
        return
    raise UserError(
        f"listening on {host} lets others use the models, and there are no API keys. Give keys "
        "with --keys FILE or ATTAR_API_KEYS, or say --anyone"
    )
