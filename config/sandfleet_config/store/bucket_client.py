"""Make the client of a bucket: credentials from the settings alone, bounded waits and retries."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never, cast
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from sandfleet_config.settings import SettingsInvalid

if TYPE_CHECKING:
    from typing import Literal

    from sandfleet_config.store_settings import StoreSettings

CONNECT_SECONDS: Final = 5
MAX_RETRIES: Final = 4
BODY_SECONDS: Final = 7 * 86400
"""obstore's own bound on a request, 30 s, is too short for a large object.

`timeout_seconds` bounds a pause.
"""


_process: list[int] = []
"""The process that runs obstore's threads: a state of the process, as these threads are."""


def is_usable_process() -> bool:
    """Whether obstore works in this process.

    It hangs for ever (0.12.1) in a child that was forked after its parent had used it.
    """
    if not _process:
        _process.append(os.getpid())
    return _process[0] == os.getpid()


def new_client(settings: StoreSettings) -> Any:
    """Return obstore's client; nothing is connected yet.

    Raises:
        SettingsInvalid: the CA file cannot be read, or a setting has no valid form.
    """
    parts = urlsplit(settings.url)
    prefix = unquote(parts.path).strip("/") or None
    options: dict[str, Any] = {
        "prefix": prefix,
        "client_options": _new_client_options(settings),
        "retry_config": _new_retries(settings),
    }
    try:
        return _new_store(cast("Literal['s3', 'az', 'gs']", parts.scheme), parts.netloc, settings, options)
    except (BaseError, ValueError) as error:
        # Its message may repeat a credential.
        msg = f"SANDFLEET_STORE: no client can be made for {settings.url} ({type(error).__name__})"
        raise SettingsInvalid(msg) from None


def _new_store(scheme: Literal["s3", "az", "gs"], bucket: str, settings: StoreSettings, options: dict[str, Any]) -> Any:
    secret = settings.secret_access_key.get_secret_value()
    access_key = settings.access_key_id.get_secret_value()
    endpoint = {"endpoint": settings.endpoint} if settings.endpoint else {}
    address = settings.endpoint or _amazon(settings.region)
    match scheme:
        case "s3":
            # Without a provider, obstore also takes AWS_* variables, such as another account's
            # session token, and without any credentials it asks the cloud's metadata address.
            credentials = {"access_key_id": access_key, "secret_access_key": secret, "token": None, "expires_at": None}
            return S3Store(
                bucket,
                region=settings.region,
                skip_signature=False,
                virtual_hosted_style_request=False,
                credential_provider=lambda: cast("Any", credentials),
                endpoint=address,
                aws_endpoint_url_s3=address,
                **options,
            )
        case "az":
            return AzureStore(bucket, account_name=access_key, account_key=secret, **cast("Any", endpoint), **options)
        case "gs":
            return GCSStore(bucket, service_account_key=secret, **options)
        case _:
            assert_never(scheme)


def _amazon(region: str) -> str:
    """Return Amazon's own address: named here, since obstore would prefer ``AWS_ENDPOINT_URL``."""
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _new_client_options(settings: StoreSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": settings.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, settings.timeout_seconds)),
        "read_timeout": timedelta(seconds=settings.timeout_seconds),
        "timeout": timedelta(seconds=BODY_SECONDS),
    }
    if settings.ca_file:
        try:
            options["root_certificate"] = Path(settings.ca_file).read_bytes()
        except OSError as error:
            msg = f"SANDFLEET_STORE__CA_FILE: {settings.ca_file}: {error.strerror}"
            raise SettingsInvalid(msg) from None
    return options


def _new_retries(settings: StoreSettings) -> dict[str, Any]:
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
    seconds = 2 * settings.timeout_seconds
    return {"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=seconds), "backoff": backoff}
