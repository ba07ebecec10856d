"""The agent's files: the id of its node and the bootId of its run. POSIX only.

`node_id` holds the node id. `boot_id` holds the bootId that the registry accepted last; the next
run sends it to prove that it is a restart. `boot_id.pending` holds a bootId that was sent, but not
yet accepted. `bootstrap.json` holds the settings of the last bootstrap. Every write is atomic and
durable.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

SYSTEM_DIR = Path("/etc/dagi")
MAX_NODE_ID_LENGTH = 255
NODE_ID, BOOT_ID, PENDING, BOOTSTRAP, LOCK = (
    "node_id",
    "boot_id",
    "boot_id.pending",
    "bootstrap.json",
    "agent.lock",
)


class StateError(Exception):
    """A file of the agent cannot be used. Nothing has been changed."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


def find_state_dir(candidates: tuple[Path, ...] | None = None, *, writing: bool) -> Path:
    """Return /etc/dagi if it is writable, else ~/.config/dagi; one with a node id comes first.

    Unless `writing`, the directory need not be writable, nor exist.

    Raises: StateError: no directory is writable, or there is no home directory.
    """
    if candidates is None:
        candidates = (SYSTEM_DIR, _find_user_dir())
    writable = [path for path in candidates if _can_write(path)]
    with_node_id = [path for path in candidates if os.access(path / NODE_ID, os.R_OK)]
    choices = [path for path in writable if path in with_node_id]
    choices += writable if writing else [*with_node_id, *writable, candidates[0]]
    if not choices:
        raise StateError(candidates[-1], "cannot be written; choose another with --state-dir")
    return choices[0]


def _find_user_dir() -> Path:
    try:
        return Path.home() / ".config" / "dagi"
    except RuntimeError:
        raise StateError(Path("~"), "there is no home directory; use --state-dir") from None


def _can_write(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, which one agent can hold; create the directory if it is missing.

    The kernel releases the lock when the process dies.

    Raises: StateError: another agent holds the lock, or the directory cannot be written.
    """
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(directory, _describe_error(error)) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
            raise StateError(
                directory, f"another node-agent (process {holder}) is using it"
            ) from None
        except OSError as error:
            raise StateError(directory / LOCK, _describe_error(error)) from error
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(lock)


def read_node_id(directory: Path) -> str | None:
    """Return the node id in the directory, None if there is none yet.

    A damaged file is never treated as missing: that would give the node a second identity.

    Raises: StateError: the file contains no node id.
    """
    text = read_text(directory / NODE_ID)
    if text is None:
        return None
    node_id = text.strip()
    if not is_node_id(node_id):
        raise StateError(
            directory / NODE_ID, "contains no node id; write the right one or delete the file"
        )
    return node_id


def is_node_id(text: str) -> bool:
    """Return whether the text fits the node id file. Whether it is valid, the registry decides."""
    return (
        0 < len(text) <= MAX_NODE_ID_LENGTH
        and text.isprintable()
        and not any(map(str.isspace, text))
    )


def read_boot_id(directory: Path) -> str | None:
    """Return the bootId accepted last, None if there is none or the file is damaged.

    Without it a restart only has to wait until the registry finds the former run silent.
    """
    try:
        return _parse_uuid(read_text(directory / BOOT_ID))
    except StateError:
        return None


def prepare_boot_id(directory: Path, hostname: str, address: str | None) -> str:
    """Return the bootId for this run, which is on disk before it is sent.

    It is new, unless the former run died waiting for the reply to its registration: then both
    registrations have the same bootId, by which the registry recognizes them as one. `hostname`
    and `address` detect a pending bootId that was copied here with another machine's disk.

    Raises: StateError: the file cannot be written.
    """
    try:
        pending = json.loads(read_text(directory / PENDING) or "null")
        boot_id = _parse_uuid(pending["bootId"])
        if boot_id and (pending["hostname"], pending["address"]) == (hostname, address):
            return boot_id
    except (StateError, ValueError, TypeError, KeyError):
        pass  # damaged, so a new bootId replaces it
    boot_id = str(uuid4())
    document = {"bootId": boot_id, "hostname": hostname, "address": address}
    write_atomically(directory / PENDING, json.dumps(document), mode=0o600)
    return boot_id


def save_accepted_boot(directory: Path, node_id: str, boot_id: str) -> None:
    """Write the node id and bootId that the registry accepted. Call it before the first heartbeat.

    A bootId that has sent heartbeats must not be used again: the sequence restarts at 1.

    Raises: StateError: a file cannot be written.
    """
    if read_node_id(directory) != node_id:
        write_atomically(directory / NODE_ID, f"{node_id}\n", mode=0o644)
    if read_boot_id(directory) != boot_id:
        write_atomically(directory / BOOT_ID, f"{boot_id}\n", mode=0o600)
    try:
        (directory / PENDING).unlink(missing_ok=True)
        _sync_directory(directory)
    except OSError as error:
        raise StateError(directory / PENDING, _describe_error(error)) from error


def save_bootstrap_settings(directory: Path, settings: Mapping[str, object]) -> None:
    write_atomically(directory / BOOTSTRAP, json.dumps(settings, indent=2) + "\n", mode=0o644)


def read_bootstrap_settings(directory: Path) -> dict[str, Any]:
    """Return the settings of the last bootstrap, empty if there was none.

    Raises: StateError: the file is damaged. Continuing without it could turn a production router
    into a development worker.
    """
    text = read_text(directory / BOOTSTRAP)
    try:
        settings = {} if text is None else json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise StateError(
            directory / BOOTSTRAP, "is damaged; delete it and run node-agent bootstrap"
        )
    return settings


def write_atomically(path: Path, text: str, *, mode: int) -> None:
    """Write the file so that it is never partial and survives a power cut.

    Hold the lock of `lock_directory` meanwhile.

    Raises: StateError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(draft, flags, mode)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - of a descriptor
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise StateError(path, _describe_error(error)) from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str | None:
    """Return the file's text, None if there is no such file.

    Raises: StateError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise StateError(path, "is damaged: not text") from None
    except OSError as error:
        raise StateError(path, _describe_error(error)) from error


def _parse_uuid(text: object) -> str | None:
    try:
        return str(UUID(text.strip())) if isinstance(text, str) else None
    except ValueError:
        return None


def _describe_error(error: OSError) -> str:
    return error.strerror or str(error)
