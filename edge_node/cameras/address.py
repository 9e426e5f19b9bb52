"""Say where a camera is without saying how to get in.

Owns what of a source may be shown, logged or published. Never: reads or changes a source.
Invariant: when in doubt, what is shown is less.
"""

import re

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/*)(.*)", re.DOTALL)
_NOTHING_TO_HIDE = ("file:", "v4l2:", "generated:")


def public_address(source: str) -> str:
    """Return a camera's (or a broker's) address as people may see it.

    Masked are user and password up to the last ``@`` (a password may hold ``/`` and ``@``), and
    values, in the query and where cameras put ``key=value`` into the path. Files and devices have
    nothing to hide. O(length).
    """
    match = _ADDRESS.fullmatch(source)
    if match is None or match[1].lower().startswith(_NOTHING_TO_HIDE):
        return source
    head, rest = match.groups()
    user, at, place = rest.rpartition("@")
    if "?" in user:  # is it a password's, or is the @ in the query?
        return f"{head}***"
    path, question, query = place.partition("?")
    path = re.sub(r"=[^&;]*", "=***", path)
    query = re.sub(r"[^&;]+", _without_value, query)
    return f"{head}{'***@' if at else ''}{path}{question}{query}"


def _without_value(part: re.Match[str]) -> str:
    key, equals, _ = part[0].partition("=")
    return f"{key}=***" if equals else "***"
