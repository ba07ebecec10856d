"""The agent's files: who its node is, and which run of the agent the registry knows. POSIX only.

`node_id` names the node. `boot_id` is the bootId that the registry accepted last; the next run
shows it to prove that it is a restart. `boot_id.pending` is one that was sent, but whose answer
never arrived. `bootstrap.json` is what bootstrap was told. Every write is atomic and durable.
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
    """A file of the agent cannot be used; nothing has been changed."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


def find_state_dir(candidates: tuple[Path, ...] | None = None, *, writing: bool) -> Path:
    """/etc/dagi when it may be written, else ~/.config/dagi; one that holds a node id goes first.

    With `writing` false the directory need not be writable, nor exist.
    """
    if candidates is None:
        candidates = (SYSTEM_DIR, _find_user_dir())
    writable = [path for path in candidates if _can_write(path)]
    with_node_id = [path for path in candidates if os.access(path / NODE_ID, os.R_OK)]
    choices = [path for path in writable if path in with_node_id]
    choices += writable if writing else [*with_node_id, *writable, candidates[0]]
    if not choices:
        raise StateError(candidates[-1], "cannot be written; name another with --state-dir")
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
    """Keeps every other agent away from this directory, and makes it if it is missing.

    Raises StateError at once when one is there. The kernel lets go when the process dies.
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
    """None when there is none yet. Raises StateError for one that cannot be a node id.

    A damaged file is never taken for a missing one: that would give the node a second identity.
    """
    text = read_text(directory / NODE_ID)
    if text is None:
        return None
    node_id = text.strip()
    if not is_node_id(node_id):
        raise StateError(
            directory / NODE_ID, "holds no node id; put the right one in, or delete the file"
        )
    return node_id


def is_node_id(text: str) -> bool:
    """Whether it can be stored in a line of its own; the registry decides whether it is good."""
    return (
        0 < len(text) <= MAX_NODE_ID_LENGTH
        and text.isprintable()
        and not any(map(str.isspace, text))
    )


def read_boot_id(directory: Path) -> str | None:
    """The bootId accepted last; None when there is none, or it is damaged.

    Without it a restart has to wait until the registry finds the former run silent, no more.
    """
    try:
        return _parse_uuid(read_text(directory / BOOT_ID))
    except StateError:
        return None


def prepare_boot_id(directory: Path, hostname: str, address: str | None) -> str:
    """The bootId for this run, on disk before it is sent.

    It is new, unless the run before this one died waiting for the answer to its registration:
    under the same bootId the registry knows the two registrations for one. `hostname` and
    `address` tell that run from one that was copied here with the disk of another machine.
    """
    try:
        pending = json.loads(read_text(directory / PENDING) or "null")
        boot_id = _parse_uuid(pending["bootId"])
        if boot_id and (pending["hostname"], pending["address"]) == (hostname, address):
            return boot_id
    except (StateError, ValueError, TypeError, KeyError):
        pass  # damaged: a new one replaces it
    boot_id = str(uuid4())
    document = {"bootId": boot_id, "hostname": hostname, "address": address}
    write_atomically(directory / PENDING, json.dumps(document), mode=0o600)
    return boot_id


def save_accepted_boot(directory: Path, node_id: str, boot_id: str) -> None:
    """Keeps what the registry accepted. To be called before the first heartbeat is sent.

    A bootId that has sent heartbeats must not come back: the sequence starts again at 1.
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
    """Empty when nothing is. Raises StateError for a damaged file.

    To go on without it could turn a production router into a development worker.
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
    """After it the file is whole and survives a power cut. Under the lock of `hold` only."""
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
    """None when there is no such file. Raises StateError for one that cannot be read."""
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
