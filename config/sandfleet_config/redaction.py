"""Hide secrets in command lines before people see them: in logs, Flower, pages and lists.

It is a help for people who put a secret where it does not belong, not a guarantee: secrets belong
into a job's `env` or stdin, which are never shown. `docs/explanation/security.md` tells what is
hidden. Each step reads the text once; nothing here takes more than linear time.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HIDDEN: Final = "***"
MAX_CHARS: Final = 1000
"""Characters of a command that are read; ``...`` stands for the rest."""
RANDOM_CHARS: Final = 32
"""Least length of a word that is hidden because it looks random."""
RANDOM_CHANGES: Final = 0.4
"""Least share of neighbours of different kinds (capital, small, digit) in a random word.

Random base64 has about 0.6, names in CamelCase have less; and it has digits at two places or more.
"""

SECRET_ENDINGS: Final = ("token", "secret", "password", "passwd", "passphrase", "passcode", "apikey", "credential")
SECRET_PARTS: Final = frozenset(
    {"authorization", "auth", "bearer", "cookie", "credentials", "dsn", "jwt", "otp", "pass", "passwords", "pat", "pw"}
    | {"pwd", "sas", "secrets", "sig", "signature"}
)
KEY_KINDS: Final = frozenset(
    {"access", "account", "api", "auth", "encryption", "master", "private", "secret", "signing"}
)
PLAIN_KEYS: Final = frozenset({"cache", "foreign", "group", "json", "partition", "primary", "public", "row", "sort"})
PLAIN_ENDINGS: Final = frozenset(
    {"budget", "column", "count", "dir", "field", "file", "len", "length", "limit", "path", "size", "ttl", "type"}
)
"""Names that end so say where or how large a secret is: ``--token-file``, ``token_limit``."""

# Most commands have none of these, and twenty searches for a text cost less than one for a pattern
# of twenty without regard to case.
_HINTS: Final = (
    *("token", "secret", "pass", "pwd", "key", "auth", "bearer", "basic", "cookie", "credential", "dsn", "jwt", "otp"),
    *("pat", "pw", "sas", "sig", "://", "-u", "user", "akia", "asia", "aiza", "gh", "glpat-", "hf_", "npm_", "pypi-"),
    *("sk-", "k_live", "xox", "eyj", "-----begin"),
)
_KNOWN_FORMS: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|gh[opsur]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|hf_\w{16,}|npm_\w{30,}|pypi-[\w-]{30,}|[sr]k[-_][\w-]{16,}|xox[a-z]-[\w-]{8,}|eyJ[\w-]{8,}\.[\w.-]{8,})"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*",
    re.DOTALL | re.ASCII,
)
_RANDOM_FORM: Final = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{32,}+(?:[+/=][A-Za-z0-9_+/=-]*+)?")
_SCHEME: Final = "://"
_AUTHORITY_END: Final = re.compile(r"[/?#\s\"'\\]")
_URL_END: Final = re.compile(r"[\s\"'\\]")
_PORT: Final = re.compile(r"[^:@]*:\d{0,5}\Z")
# A name and what stands between it and its value. It begins where no name goes on, and is
# possessive, so each character is read once.
_ASSIGNED: Final = re.compile(
    r"(?<![\w.-])(-{0,2}+)([A-Za-z_$][\w.-]*+)"
    r"(?:[\"']?\]?[ \t]{0,2}(?::=|=>|[=:])(?!/)[ \t]{0,2}(?:[bru]?(?=[\"']))?|([ \t]{1,4}+)(?=[^\s-]))"
)
# A quote in a string has a backslash before it, in JSON and in most languages.
_VALUE: Final = re.compile(r"\"(?:[^\"\\]++|\\.?)*+\"?|'(?:[^'\\]++|\\.?)*+'?|[^\s\"'&;|,)}\]]++")
_HEADER_VALUE: Final = re.compile(r"\"(?:[^\"\\]++|\\.?)*+\"?|'(?:[^'\\]++|\\.?)*+'?|[^\r\n\"']++")
_HEADERS: Final = frozenset({"authorization", "cookie", "set-cookie", "proxy-authorization"})
_SCHEMES: Final = re.compile(r"\b(bearer|basic)([ \t]{1,4}+)([\w.~+/=-]{6,}+)", re.IGNORECASE)
_PARTS: Final = re.compile(r"[^\W_]++")
_HUMPS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OPTION: Final = re.compile(r"--?([A-Za-z][\w.-]*+)(?:([=:])|\Z)")
_NEXT_OPTION: Final = re.compile(r"--[A-Za-z]|-[A-Za-z]\Z")
_LOGIN_OPTIONS: Final = frozenset({"-u", "--user", "--proxy-user", "-U"})
_LOGIN_IN_TEXT: Final = re.compile(
    r"(?<![\w-])(-[uU]|--(?:proxy-)?user)([ =]{1,2}+[^:\s\"']{1,100}+):(?!\d{1,10}(?!\S))[^\s\"']++"
)
_LOGIN: Final = re.compile(r"([^:\s]{1,100}+):(?!\d{1,10}\Z)(.+)", re.DOTALL)


def hide_secrets(command: Sequence[str]) -> str:
    """Return `command` as one printable line, with the values of what looks secret as ``***``."""
    return join_words(_hide(_cut(command)))


def join_words(command: Sequence[str]) -> str:
    """Return `command` as one printable line, as it is."""
    return " ".join(word if word.isprintable() and " " not in word else ascii(word) for word in command)


def is_secret_name(name: str) -> bool:
    """Whether the value of an option or a variable with this name is hidden."""
    if not name.islower() and not name.isupper():
        name = _HUMPS.sub("_", name)
    parts = _PARTS.findall(name.lower())
    if not parts or parts[-1] in PLAIN_ENDINGS:
        return False
    if any(part in SECRET_PARTS or part.endswith(SECRET_ENDINGS) for part in parts):
        return True
    if parts[-1] in {"key", "keys"}:
        return PLAIN_KEYS.isdisjoint(parts)
    return any(first in KEY_KINDS and second == "key" for first, second in pairwise(parts))


def _cut(command: Sequence[str]) -> list[str]:
    """Return the words up to `MAX_CHARS`; of the word that is cut only what ends before a space."""
    words, left = list[str](), MAX_CHARS
    for word in command:
        if len(word) > left:
            words.append(word[:left].rpartition(" ")[0] + "...")
            break
        words.append(word)
        left -= len(word) + 1
        if left <= 0:
            break
    return words


def _hide(command: list[str]) -> list[str]:
    return list(_hide_words(command)) if _is_suspect("\0".join(command)) else command


def _is_suspect(text: str) -> bool:
    """Whether anything may have to be hidden; most commands need no further look."""
    small = text.lower()
    for hint in _HINTS:
        if hint in small:
            return True
    return len(text) >= RANDOM_CHARS and _RANDOM_FORM.search(text) is not None


def _hide_words(command: list[str]) -> Iterator[str]:
    expected = ""
    for word in command:
        if expected and not _NEXT_OPTION.match(word):
            shown, expected = _hide_expected(word, expected)
            yield shown
            continue
        expected = _find_expected(word)
        option = _OPTION.match(word)
        if option and option[2] and is_secret_name(option[1]):
            yield word[: option.end()] + HIDDEN
        else:
            yield hide_in_text(word)


def _find_expected(word: str) -> str:
    """Return what the next word is: a ``secret``, a ``login``, a header's ``scheme``, or nothing."""
    if word in _LOGIN_OPTIONS:
        return "login"
    if word.lower() in {"bearer", "basic"}:
        return "secret"
    option = _OPTION.match(word)
    if option and not option[2] and is_secret_name(option[1]):
        return "secret"
    if word.endswith(":") and is_secret_name(word[:-1]):
        return "scheme"
    return ""


def _hide_expected(word: str, expected: str) -> tuple[str, str]:
    """Return what is shown of `word`, and what the word after it is."""
    if expected == "login":
        login = _LOGIN.fullmatch(word)
        return (f"{login[1]}:{HIDDEN}" if login else hide_in_text(word)), ""
    if expected == "scheme" and word.lower() in {"bearer", "basic", "token", "digest"}:
        return word, "secret"
    return HIDDEN, ""


def hide_in_text(text: str) -> str:
    """Return one word of a command, or a text, with what looks secret inside of it as ``***``."""
    if not _is_suspect(text):
        return text
    text = _KNOWN_FORMS.sub(HIDDEN, _hide_assigned(text))
    text = _LOGIN_IN_TEXT.sub(rf"\1\2:{HIDDEN}", text)
    text = _SCHEMES.sub(rf"\1\2{HIDDEN}", text)
    if _SCHEME in text:
        text = _hide_logins(text)
    return _RANDOM_FORM.sub(_hide_random, text)


def _hide_assigned(text: str) -> str:
    """Hide the values of ``NAME=value``, ``NAME: value``, ``"name": "value"`` and ``--name value``."""
    pieces, shown, at = list[str](), 0, 0
    while found := _ASSIGNED.search(text, at):
        at = found.end()
        dashes, name, space = found[1], found[2].lstrip("$"), found[3]
        if (space and not dashes) or not is_secret_name(name):
            at = found.start(3) if space else at
            continue
        value = (_HEADER_VALUE if name.lower() in _HEADERS else _VALUE).match(text, at)
        if value is None:
            continue
        quote = value[0][0] if value[0][0] in "\"'" else ""
        pieces += [text[shown:at], f"{quote}{HIDDEN}{quote}"]
        shown = at = value.end()
    return "".join([*pieces, text[shown:]]) if pieces else text


def _hide_logins(text: str) -> str:
    """Hide the user and password of each URL, also of one without its host."""
    pieces = text.split(_SCHEME)
    return _SCHEME.join([pieces[0], *(_hide_login(piece) for piece in pieces[1:])])


def _hide_login(rest: str) -> str:
    end = _AUTHORITY_END.search(rest)
    authority = rest[: end.start()] if end else rest
    if "@" in authority:
        return HIDDEN + rest[authority.rindex("@") :]
    if ":" not in authority or _PORT.match(authority) or authority.startswith("["):
        return rest
    # A password with a slash that nobody wrote as %2F, or a URL that was cut.
    last = _URL_END.search(rest)
    url = rest[: last.start()] if last else rest
    return HIDDEN + (rest[url.rindex("@") :] if "@" in url else rest[len(url) :])


def _hide_random(found: re.Match[str]) -> str:
    """Hide what looks like random base64; digests and ids in hex are what people look for."""
    kinds = [1 if char.isupper() else 2 if char.islower() else 3 for char in found[0] if char.isalnum()]
    if len(set(kinds)) < 3:  # noqa: PLR2004  capitals, small letters and digits
        return found[0]
    changes = [second for first, second in pairwise(kinds) if first != second]
    is_random = len(changes) >= RANDOM_CHANGES * (len(kinds) - 1) and changes.count(3) > 1
    return HIDDEN if is_random else found[0]
