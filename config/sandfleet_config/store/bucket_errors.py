"""Say what went wrong with a bucket, without the credentials that its answers may repeat."""

from __future__ import annotations

import re
from typing import Final

from sandfleet_config.store.protocol import StoreDown

_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS: Final = re.compile(r"\bstatus: (\d{3})\b")
_SYSTEM: Final = re.compile(r"""message: "([^"\\]{1,200})"|InvalidCertificate\(\s*(\w+)""")
_TIMED_OUT: Final = re.compile(r"\bTimedOut\b|timed out")
_CREDENTIALS: Final = (
    "check SANDFLEET_STORE__ACCESS_KEY_ID, SANDFLEET_STORE__SECRET_ACCESS_KEY and what this key may do"
)
_ADVICE: Final = {
    "NoSuchBucket": "there is no such bucket: make it, or correct SANDFLEET_STORE__URL",
    "SignatureDoesNotMatch": f"the secret key is wrong: {_CREDENTIALS}",
    "InvalidAccessKeyId": f"the access key is not known there: {_CREDENTIALS}",
    "XAdminUserNotFound": f"the access key is not known there: {_CREDENTIALS}",
    "AccessDenied": f"access is denied: {_CREDENTIALS}",
    "RequestTimeTooSkewed": "this host's clock is wrong",
    "PermanentRedirect": "the bucket is in another region: correct SANDFLEET_STORE__REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: correct SANDFLEET_STORE__REGION",
    "SlowDown": "it asks for fewer requests",
}
FORBIDDEN: Final = (401, 403)


def find_code(error: Exception) -> str:
    """Return the S3 code of a server's answer, such as ``NoSuchBucket``; empty if there is none."""
    found = _CODE.search(str(error))
    return found[1] if found else ""


def find_status(error: Exception) -> int:
    """Return the HTTP status of a server's answer, 0 if there was no answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def new_down(error: Exception, name: str) -> StoreDown:
    """Return the error for people; it repeats nothing of the answer but its code.

    An answer may have the access key, and what was signed.
    """
    return StoreDown(f"{name} {_explain(error)}")


def _explain(error: Exception) -> str:
    code, status, text = find_code(error), find_status(error), str(error)
    if code in _ADVICE:
        return f"refuses ({code}): {_ADVICE[code]}"
    if status in FORBIDDEN:
        return f"refuses (HTTP {status}): {_CREDENTIALS}"
    if status:
        return f"refuses or fails (HTTP {status}{f', {code}' if code else ''}): try again later"
    if found := _SYSTEM.search(text):
        reason = found[1] or f"its certificate is not valid ({found[2]}): see SANDFLEET_STORE__CA_FILE"
        return f"is out of reach: {reason}"
    if _TIMED_OUT.search(text):
        return "is out of reach: it does not answer in time (SANDFLEET_STORE__TIMEOUT_SECONDS)"
    return f"is out of reach: {type(error).__name__}"
