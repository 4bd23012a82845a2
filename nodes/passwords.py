"""Passwords in URLs, which are neither shown nor kept in records."""

import re

HIDDEN = "***"
# Up to the last @ of the word: a secret key with a bare / or @ in it is a mistake, and still a secret.
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^:/@\s]*):(\S*)@")
_SECRET_IN_QUERY = re.compile(
    r"(?i)(?<=[?&])((?:[a-z_-]*(?:password|passwd|token|secret|secret_key|api_?key|sig|signature))=)[^&\s'\"]+"
)


def without_passwords(text: str) -> str:
    """The text with `***` for the passwords in its URLs, to be shown or kept."""
    text = _PASSWORD_IN_URL.sub(rf"\1:{HIDDEN}@", text)
    return _SECRET_IN_QUERY.sub(rf"\1{HIDDEN}", text)


def is_redacted(url: str | None) -> bool:
    """Whether a URL has come out of a record without its password."""
    return url is not None and HIDDEN in url and without_passwords(url) == url


def password_has_slash(url: str) -> bool:
    """Whether the password seems to go on behind a slash, where for other programs the URL's path begins."""
    found = _PASSWORD_IN_URL.search(url)
    return found is not None and "/" in found[2]
