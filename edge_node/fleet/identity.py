"""Owns the node's key file and the reading of the fleet's secret.

Never prints or logs either. Invariant: a key file holds 64 hex digits and is readable by its owner
only, or it is not used.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path

from edge_node.fleet.durable import write_atomically
from gossip.sealing import Identity

KEY_NAME = "node.key"
MIN_SECRET_BYTES = 16
MIN_TOKEN_CHARS = 16
_MAX_FILE_BYTES = 4096
_HEX = re.compile(rb"[0-9a-fA-F]+")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")


class IdentityError(Exception):
    """A key or secret file cannot be used; the text names it and says what to do."""


def load_or_create_identity(state_dir: Path) -> Identity:
    """Load the node's key from `state_dir`/node.key, or make one (mode 0600) if there is none.

    Raises IdentityError (readable by others, damaged, cannot be read or written); an existing file
    is never changed.
    """
    path = Path(state_dir) / KEY_NAME
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create_key(path)
    except OSError as error:
        raise IdentityError(
            f"{path}: the node's key cannot be made: {error.strerror or error}; make the folder "
            f"writable for this user, or choose another [node] state_dir"
        ) from error
    text = read_private(path, "the node's key", forbidden_mode=0o077).strip()
    if len(text) != 64 or not _HEX.fullmatch(text):
        raise IdentityError(
            f"{path}: damaged: {len(text)} characters where a key has 64 hex digits; restore it "
            f"from a copy, or delete it to join as a new node with a new id"
        )
    return Identity.from_private_bytes(bytes.fromhex(text.decode()))


def _create_key(path: Path) -> None:
    key = Identity.generate().private_bytes().hex()
    try:
        write_atomically(path, f"{key}\n".encode(), exclusive=True)
    except FileExistsError:
        pass  # of two processes that start at once, one makes the key and both use it


def load_secret(path: Path) -> bytes:
    """Read the fleet's secret: hex, base64, or at least 16 bytes of any other content.

    Text is taken without white space around it, so that an editor's newline changes nothing.
    Raises IdentityError (missing, readable by everyone, too short, a placeholder).
    """
    path = Path(path)
    data = read_private(path, "the fleet's secret", forbidden_mode=0o007)
    secret = _decode_secret(data)
    if len(secret) < MIN_SECRET_BYTES or len(set(secret)) < 8:
        kind = "too short" if len(secret) < MIN_SECRET_BYTES else "a placeholder"
        raise IdentityError(
            f"{path}: the fleet's secret is {kind} ({len(secret)} bytes); copy the file of a node "
            f"of the fleet, or begin a new fleet: (umask 077; openssl rand -hex 32 > '{path}')"
        )
    return secret


def load_token(path: Path) -> str:
    """Read the API's token, at least `MIN_TOKEN_CHARS` printable characters.

    Raises IdentityError (missing, readable by everyone, too short, not text).
    """
    data = read_private(Path(path), "the API's token", forbidden_mode=0o007).strip()
    if len(data) < MIN_TOKEN_CHARS or not data.isascii() or not data.decode().isprintable():
        raise IdentityError(
            f"{path}: the API's token must be at least {MIN_TOKEN_CHARS} printable ASCII "
            f"characters; make one: (umask 077; openssl rand -hex 32 > '{path}')"
        )
    return data.decode()


def _decode_secret(data: bytes) -> bytes:
    text = data.strip()
    if not text.isascii() or any(byte < 0x20 or byte == 0x7F for byte in text):
        return data
    if _HEX.fullmatch(text) and len(text) % 2 == 0:
        return bytes.fromhex(text.decode())
    if _BASE64.fullmatch(text) and len(text) % 4 == 0:
        try:
            return base64.b64decode(text, altchars=b"-_" if set(b"-_") & set(text) else None)
        except binascii.Error:
            return text
    return text


def read_private(
    path: Path, what: str, forbidden_mode: int, max_bytes: int = _MAX_FILE_BYTES
) -> bytes:
    """Read a small private file; the permissions checked are those of the file that is read.

    Raises IdentityError (missing, readable by others, too long), which names it as `what`.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(max_bytes + 1)
    except OSError as error:
        hint = "copy it from a node of the fleet, or run `edge-node init`"
        if not isinstance(error, FileNotFoundError):
            hint = "make it a file that this user can read"
        raise IdentityError(f"{path}: {what}: {error.strerror or error}; {hint}") from error
    if mode & forbidden_mode:
        wanted = f"{mode & ~forbidden_mode:o}"
        raise IdentityError(
            f"{path}: {what} can be read or changed by others (mode {mode:o}): chmod {wanted} "
            f"'{path}'"
        )
    if len(data) > max_bytes:
        raise IdentityError(f"{path}: {what}: more than {max_bytes} bytes; wrong file?")
    return data
