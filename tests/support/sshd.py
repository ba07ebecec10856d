"""A host for ssh: sshd on a free port of this machine, with its own keys.

Debian's package is unpacked, not installed, and nothing outside the folder is changed.
"""

import asyncio
import getpass
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.registry_process import find_free_port

SECONDS = 60
PACKAGES = ("openssh-server", "libwrap0")


class UnavailableError(Exception):
    """sshd is not available on this machine, or does not start."""


def find_sshd(folder: Path) -> Path:
    """Return the path of sshd.

    Raises: UnavailableError: this machine has no sshd and cannot download it.
    """
    for name in ("ssh", "ssh-keygen"):
        if shutil.which(name) is None:
            raise UnavailableError(f"{name} is not on this machine")
    if found := shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin"):
        return Path(found)
    unpacked = folder / "usr" / "sbin" / "sshd"
    if unpacked.exists():
        return unpacked
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError("neither sshd nor apt is on this machine")
    download = ("apt-get", "download", *PACKAGES)
    for command in (download, ("apt-get", "update"), download):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
        if len(list(folder.glob("*.deb"))) == len(PACKAGES):
            break
    else:
        raise UnavailableError("apt has no openssh-server")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=SECONDS)
    return unpacked


@asynccontextmanager
async def run_host(sshd: Path, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[str]:
    """Run sshd, and yield the command that takes the place of `ssh` to reach it as 127.0.0.1.

    Raises: UnavailableError: sshd does not start.
    """
    for name in ("host", "user"):
        await _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    port = find_free_port()
    variables = " ".join(f'{name}="{value}"' for name, value in environment.items())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin prohibit-password\nSetEnv {variables}\n"
    )
    ssh_command = (
        f"ssh -F none -p {port} -i {folder / 'user'} -l {getpass.getuser()} -o LogLevel=ERROR"
        f" -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder / 'known'}"
        f" -o ControlMaster=auto -o ControlPersist=60 -o ControlPath={folder}/%p"
    )
    process = await asyncio.create_subprocess_exec(
        *_make_command(sshd, folder),
        env={**os.environ, "LD_LIBRARY_PATH": str(sshd.parent.parent / "lib/x86_64-linux-gnu")},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await _wait_until_listening(process, port)
        yield ssh_command
    finally:
        await _run(*ssh_command.split(), "-O", "exit", "127.0.0.1")
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(SECONDS):
        await process.wait()


def _make_command(sshd: Path, folder: Path) -> list[str]:
    """Return the command of sshd; root needs a folder in /run and an account.

    Both are made in a mount namespace of their own. There, root's shell starts without the
    profile of this machine's root.
    """
    plain = [str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")]
    if os.geteuid() != 0:
        return plain
    passwd = folder / "passwd"
    passwd.write_text(
        f"root:x:0:0::{folder}:/bin/sh\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n",
        encoding="utf-8",
    )
    script = (
        f"mount -t tmpfs tmpfs /run && mkdir -m 0755 /run/sshd"
        f' && mount --bind {passwd} /etc/passwd && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh", *plain]


async def _wait_until_listening(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(SECONDS):
        while process.returncode is None:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)
    assert process.stderr is not None
    errors = (await process.stderr.read()).decode().strip()
    raise UnavailableError(f"sshd does not start here: {errors[-300:]}")
