import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent import identity
from agent.identity import StateError

HOST = ("gateway", "192.168.1.7")


def test_missing_file_means_that_there_is_no_node_id_yet(tmp_path: Path) -> None:
    assert identity.read_node_id(tmp_path) is None
    assert identity.read_node_id(tmp_path / "missing") is None


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"\xff\xfe", b"x" * 256])
def test_damaged_node_id_is_an_error_and_never_a_new_identity(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / identity.NODE_ID).write_bytes(content)
    with pytest.raises(StateError, match="node_id"):
        identity.read_node_id(tmp_path)
    with pytest.raises(StateError, match="node_id"):
        identity.save_accepted_boot(tmp_path, "node-2", "b")
    assert (tmp_path / identity.NODE_ID).read_bytes() == content


def test_node_id_written_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / identity.NODE_ID).write_text("  node-1-hetzner-gex44\r\n")
    assert identity.read_node_id(tmp_path) == "node-1-hetzner-gex44"


def test_start_has_a_new_boot_id_after_the_previous_one_was_accepted(tmp_path: Path) -> None:
    first = identity.prepare_boot_id(tmp_path, *HOST)
    identity.save_accepted_boot(tmp_path, "node-1", first)
    assert identity.read_node_id(tmp_path) == "node-1"
    assert identity.read_boot_id(tmp_path) == first
    second = identity.prepare_boot_id(tmp_path, *HOST)
    assert second != first
    assert identity.read_boot_id(tmp_path) == first


def test_start_repeats_a_boot_id_that_was_not_accepted(tmp_path: Path) -> None:
    first = identity.prepare_boot_id(tmp_path, *HOST)
    assert identity.prepare_boot_id(tmp_path, *HOST) == first


def test_boot_id_that_was_not_accepted_is_not_reused_on_another_machine(
    tmp_path: Path,
) -> None:
    first = identity.prepare_boot_id(tmp_path, *HOST)
    assert identity.prepare_boot_id(tmp_path, "gateway", "192.168.1.8") != first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"bootId": 1}', b"\xff"])
def test_damaged_boot_files_lead_to_a_new_boot_id(tmp_path: Path, content: bytes) -> None:
    (tmp_path / identity.PENDING).write_bytes(content)
    (tmp_path / identity.BOOT_ID).write_bytes(content)
    assert identity.read_boot_id(tmp_path) is None
    boot_id = identity.prepare_boot_id(tmp_path, *HOST)
    identity.save_accepted_boot(tmp_path, "node-1", boot_id)
    assert identity.read_boot_id(tmp_path) == boot_id


def test_failed_write_leaves_the_old_file_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / identity.NODE_ID
    identity.write_atomically(path, "node-1\n", mode=0o644)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="No space left"):
        identity.write_atomically(path, "node-2\n", mode=0o644)
    assert path.read_text() == "node-1\n"


def test_node_id_is_readable_by_all_and_boot_ids_only_by_their_owner(tmp_path: Path) -> None:
    boot_id = identity.prepare_boot_id(tmp_path, *HOST)
    assert stat.S_IMODE((tmp_path / identity.PENDING).stat().st_mode) == 0o600
    identity.save_accepted_boot(tmp_path, "node-1", boot_id)
    assert stat.S_IMODE((tmp_path / identity.NODE_ID).stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / identity.BOOT_ID).stat().st_mode) == 0o600


def test_draft_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / f".{identity.NODE_ID}.draft").symlink_to(victim)
    with pytest.raises(StateError):
        identity.write_atomically(tmp_path / identity.NODE_ID, "node-1\n", mode=0o644)
    assert victim.read_text() == "untouched"


def test_second_agent_on_one_directory_is_rejected_with_the_pid_of_the_first(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "new" / "dagi"
    with (
        identity.lock_directory(directory),
        pytest.raises(StateError, match=f"process {os.getpid()}"),
        identity.lock_directory(directory),
    ):
        pass
    with identity.lock_directory(directory):
        pass


def test_directory_is_unlocked_when_its_holder_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, signal\n"
        "from agent import identity\n"
        "with identity.lock_directory(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(StateError, match=f"process {process.pid}"),
            identity.lock_directory(tmp_path),
        ):
            pass
        process.kill()
        process.wait()
        with identity.lock_directory(tmp_path):
            pass


def test_state_directory_is_the_one_that_contains_a_node_id(tmp_path: Path) -> None:
    system, user = tmp_path / "etc", tmp_path / "home"
    assert identity.find_state_dir((system, user), writing=True) == system
    user.mkdir()
    (user / identity.NODE_ID).write_text("node-1\n")
    assert identity.find_state_dir((system, user), writing=True) == user
    assert identity.find_state_dir((system, user), writing=False) == user


def test_state_directory_is_in_home_when_the_system_one_cannot_be_created(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.touch()
    user = tmp_path / "home"
    assert identity.find_state_dir((file / "dagi", user), writing=True) == user
    with pytest.raises(StateError, match="--state-dir"):
        identity.find_state_dir((file / "dagi",), writing=True)


def test_bootstrap_settings_are_read_back_and_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    assert identity.read_bootstrap_settings(tmp_path) == {}
    identity.save_bootstrap_settings(tmp_path, {"role": "production-router"})
    assert identity.read_bootstrap_settings(tmp_path) == {"role": "production-router"}
    (tmp_path / identity.BOOTSTRAP).write_text("[]")
    with pytest.raises(StateError, match=r"bootstrap\.json"):
        identity.read_bootstrap_settings(tmp_path)
