"""A model behind an OpenAI-compatible address: what it writes, and its likeliest tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from attar.errors import MissingPackage, Unreachable, UserError

_UNKNOWN = (400, 404, 405, 422, 501)  # statuses of an address that a server does not know
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses after which it may work later
_LONGEST = 60.0  # seconds between two tries
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Likely:
    """The likeliest next tokens after a prefix, the likeliest first, with log-probabilities."""

    ids: list[int]
    logs: list[float]


@dataclass(frozen=True)
class Said:
    """What a model wrote after a prompt, and why it ended there.

    `reason` is `stop` where the model ended it, `length` where it was cut, or a word of the
    server's own; empty where the server does not say.
    """

    text: str
    reason: str


_Way = Callable[[list[int], int], "list[Likely] | None"]


@dataclass(frozen=True)
class Patience:
    """How long an answer may take, in seconds; how often it is asked for; how many at once.

    `pause` seconds go by before the second try, and twice as many before each further one.
    """

    timeout: float = 120.0
    tries: int = 5
    at_once: int = 4
    pause: float = 1.0


@dataclass
class Endpoint:
    """A server at an address such as `http://127.0.0.1:8000/v1#model`.

    `key` is sent as a bearer token; it is in no message, and nothing here writes it. Proxies and
    other settings of the environment are not looked at. Raises MissingPackage without httpx,
    Unreachable where the server keeps failing, UserError where it refuses.
    """

    address: str
    key: str | None = field(default=None, repr=False)
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingPackage(
                "a teacher behind an address", "pip install 'attar[endpoint]'"
            ) from None
        base, _, self.model = self.address.partition("#")
        if not self.model:
            raise UserError(
                f"{self.address} names no model. Write the server's address, # and the model's "
                f"name there, such as {base.rstrip('/')}#my-model"
            )
        self._base = base.rstrip("/")
        try:
            httpx.URL(self._base)
        except httpx.InvalidURL as error:
            raise UserError(f"{self._base} is no address: {error}") from error
        self.key = self.key and self.key.strip()
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise UserError(
                f"the key for {self._base} holds characters that no HTTP header may have. Look at "
                "the environment variable that holds it"
            )
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._client = httpx.Client(headers=headers, timeout=self.patience.timeout, trust_env=False)
        self._way: _Way | None = None

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def write(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Said:
        """What the model writes after a text, or answers to the messages of a chat.

        Raises Refused where the server will not. Several threads may ask at a time.
        """
        asked: dict[str, Any] = {"max_tokens": tokens, "temperature": temperature, "seed": seed}
        if temperature > 0:
            asked["top_p"] = top_p
        if isinstance(prompt, str):
            return self._complete(asked | {"prompt": prompt}, _said)
        messages = [dict(message) for message in prompt]
        return self._complete(asked | {"messages": messages}, _said, "chat/completions")

    def likeliest(self, rows: Sequence[list[int]], entries: int) -> list[list[Likely]]:
        """For each row of tokens, what is likely after its first, its first two, and so on.

        Of a row of n tokens n - 1 positions are told. What a server can do is found out at the
        first row: log-probabilities of a prompt (vLLM), an echo with them, or, a token at a time,
        those of what comes next (llama.cpp). Only answers that name tokens by number are used.
        """
        if rows and self._way is None:
            self._way = self._find_way(rows[0], entries)
        way = self._way

        def one(row: list[int]) -> list[Likely]:
            told = way(row, entries) if way else None
            return self._checked(told, len(row) - 1, entries)

        return self._each(one, rows)

    def tokens(self, text: str) -> list[int] | None:
        """The server's tokens of a text, None where it has no way to tell."""
        asked = {"content": text, "prompt": text, "model": self.model}
        asked |= {"add_special": False, "add_special_tokens": False}
        try:
            url = f"{self._base.removesuffix('/v1')}/tokenize"
            return self._ask(url, asked, lambda reply: [int(one) for one in reply["tokens"]])
        except Refused as error:
            if error.status not in _UNKNOWN:
                raise
            return None

    def _find_way(self, row: list[int], entries: int) -> _Way:
        why = ""
        for way in (self._of_prompt, self._echoed, self._one_by_one):
            try:
                told = way(row[:3], entries)
            except Refused as error:
                why = f" ({error})"
                continue
            if told is not None:
                self._checked(told, len(row[:3]) - 1, entries)
                return way
        raise UserError(
            f"{self.address} tells no log-probabilities with the numbers of the tokens{why}. vLLM "
            "and llama.cpp's server do; of others the text alone can be used"
        )

    def _checked(self, told: list[Likely] | None, positions: int, entries: int) -> list[Likely]:
        if told is None or len(told) != positions:
            count = 0 if told is None else len(told)
            raise Unreachable(f"{self.address} told of {count} positions where {positions} are")
        fewest = min((len(one.ids) for one in told), default=entries)
        if fewest < entries:
            raise UserError(
                f"{self.address} tells the {fewest} likeliest tokens, and {entries} were asked "
                f"for. Write cache: {{top: {fewest}}}, or let the server tell more (vLLM: "
                "--max-logprobs)"
            )
        return told

    def _of_prompt(self, row: list[int], entries: int) -> list[Likely] | None:
        def read(choice: Any) -> list[Likely] | None:
            told = choice.get("prompt_logprobs")
            return told and [_likely(_numbered(one), entries) for one in told[1:]]

        asked = {"prompt": row, "max_tokens": 1, "temperature": 0, "prompt_logprobs": entries}
        return self._complete(asked, read)

    def _echoed(self, row: list[int], entries: int) -> list[Likely] | None:
        def read(choice: Any) -> list[Likely] | None:
            told = (choice.get("logprobs") or {}).get("top_logprobs")
            if not told or len(told) < len(row) or not all("token_id:" in key for key in told[1]):
                return None
            named = [
                {key.rpartition(":")[2]: log for key, log in one.items()}
                for one in told[1 : len(row)]
            ]
            return [_likely({int(key): log for key, log in one.items()}, entries) for one in named]

        asked = {"prompt": row, "max_tokens": 1, "temperature": 0, "echo": True}
        asked |= {"logprobs": entries, "return_tokens_as_token_ids": True}
        return self._complete(asked, read)

    def _one_by_one(self, row: list[int], entries: int) -> list[Likely] | None:
        def read(choice: Any) -> Likely | None:
            content = (choice.get("logprobs") or {}).get("content")
            if not content or "id" not in content[0]:
                return None
            told = content[0]["top_logprobs"]
            return _likely({one["id"]: one["logprob"] for one in told}, entries)

        asked = {"max_tokens": 1, "temperature": 1.0, "logprobs": entries, "n_probs": entries}
        asked["cache_prompt"] = True
        found: list[Likely] = []
        for count in range(1, len(row)):
            told = self._complete(asked | {"prompt": row[:count]}, read)
            if told is None:
                return None
            found.append(told)
        return found

    def _complete(
        self, asked: dict[str, Any], read: Callable[[Any], T], where: str = "completions"
    ) -> T:
        """What `read` makes of the first choice of a completion."""
        url = f"{self._base}/{where}"
        return self._ask(url, {"model": self.model, **asked}, lambda it: read(it["choices"][0]))

    def _ask(self, url: str, asked: dict[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the reply; asked again while that may help."""
        import httpx

        patience, why = self.patience, ""
        for number in range(patience.tries):
            wait = min(_LONGEST, patience.pause * 2**number)
            try:
                reply = self._client.post(url, json=asked)
                if reply.status_code < 300:
                    return read(reply.json())
                if reply.status_code not in _AGAIN:
                    raise Refused(self._no(url, reply.status_code, reply.text), reply.status_code)
                why = f"it answers {reply.status_code}"
                wait = max(wait, min(_LONGEST, _seconds(reply.headers.get("retry-after"))))
            except httpx.TransportError as error:
                why = self._masked(str(error)) or type(error).__name__
            except (ValueError, LookupError, TypeError, AttributeError, httpx.DecodingError):
                why = "its answer is none that an OpenAI-compatible server gives"
            if number + 1 < patience.tries:
                time.sleep(wait)
        raise Unreachable(
            f"{url} was asked {patience.tries} times: {why}. Run again when it answers: what it "
            "has told is kept"
        )

    def _no(self, url: str, status: int, text: str) -> str:
        hint = ""
        if status in (401, 403):
            hint = ". Name the environment variable that holds its key in `server: {key: NAME}`"
        return f"{url} refuses with {status}: {' '.join(self._masked(text).split())[:200]}{hint}"

    def _masked(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    def _each(self, work: Callable[[T], U], rows: Sequence[T]) -> list[U]:
        with ThreadPoolExecutor(self.patience.at_once) as pool:
            return list(pool.map(work, rows))


class Refused(UserError):
    """The server understood, and will not; `status` is what it answered."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status)


def _likely(told: dict[int, float], entries: int) -> Likely:
    best = sorted(told.items(), key=lambda item: (-item[1], item[0]))[:entries]
    return Likely([token for token, _ in best], [float(log) for _, log in best])


def _numbered(told: Any) -> dict[int, float]:
    """Log-probabilities by number, as vLLM tells them."""
    return {int(key): value["logprob"] for key, value in told.items()}


def _said(choice: Any) -> Said:
    """What a choice holds: of a chat nothing where the model refuses, or wrote to no one."""
    text = choice["message"].get("content") or "" if "message" in choice else choice["text"]
    if not isinstance(text, str):
        raise TypeError(text)
    return Said(text, str(choice.get("finish_reason") or ""))


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:  # a date
        return 0.0
