"""Files as base64 text: plain, or in a data: URI."""

import base64
import binascii
import re
from urllib.parse import unquote

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,11}://\S+$", re.IGNORECASE)
"""Text that is an address, of whatever kind."""
NOT_FETCHED = "addresses are not fetched; send the image itself as base64"


def decode(data: str) -> bytes:
    """Base64, or a data: URI of it.

    Line breaks and spaces, missing padding, the URL-safe letters and percent-encoding are read too.

    Raises:
        ValueError: it is an address, or no base64.
    """
    data = data.strip()
    if is_data_uri(data):
        head, comma, data = data.partition(",")
        if not comma or not "".join(head.lower().split()).endswith(";base64"):
            raise ValueError("a data: URI has to read data:image/...;base64,...")
    elif ADDRESS.match(data):
        raise ValueError(NOT_FETCHED)
    letters = "".join(unquote(data).split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64 ({error})") from error


def is_data_uri(text: str) -> bool:
    """Whether a text begins as a data: URI does."""
    return text[:5].lower() == "data:"
