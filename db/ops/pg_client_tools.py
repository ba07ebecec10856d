"""PostgreSQL's client programs: finding them, running them, reading their output."""

import asyncio
import os
import re
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO

from sqlalchemy import URL

from db.core.errors import EmbeddedServerFailed
from db.embedded.server import find_programs_dir

_CHUNK_BYTES = 1 << 16


class ProgramMissing(Exception):
    """Program `name` is not installed or too old. The message says what to install."""

    def __init__(self, name: str, min_version: int, found: str) -> None:
        super().__init__(
            f"{name} of PostgreSQL {min_version} or newer is needed, {found}: install the package"
            f" postgresql-client-{min_version}, or dagi-node-registry[embedded], which brings it"
        )
        self.name = name


class ProgramFailed(Exception):
    """A program ended with an error. `problem` is the first that it reported."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem.removeprefix(f'{name}: ')}")
        self.problem = problem


class Program:
    """A running program. Its errors go to a file, so that it never waits for a reader."""

    def __init__(self, name: str, process: Process, errors: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._errors = errors

    async def finish(self) -> None:
        """Close its input and wait for its end. Raises: ProgramFailed: its status is not 0."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if await self._process.wait():
            self._errors.seek(0)
            lines = self._errors.read(_CHUNK_BYTES).decode(errors="replace").splitlines()
            first = next((line for line in lines if "error" in line.lower()), *lines[:1])
            raise ProgramFailed(self._name, first)

    async def write(self, data: bytes) -> None:
        """Write to its input. Raises: ConnectionError: it has ended."""
        assert self._process.stdin is not None  # noqa: S101  # it was started with a pipe
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def read_lines(self) -> AsyncIterator[bytes]:
        """Yield lines of at most 64 KiB; what is not consumed stays for `read_chunks`."""
        assert self._process.stdout is not None  # noqa: S101  # it was started with a pipe
        async for line in self._process.stdout:
            yield line

    async def read_chunks(self) -> AsyncIterator[bytes]:
        assert self._process.stdout is not None  # noqa: S101  # it was started with a pipe
        while chunk := await self._process.stdout.read(_CHUNK_BYTES):
            yield chunk


@asynccontextmanager
async def run_program(
    name: str,
    *arguments: str,
    min_version: int,
    url: URL | None = None,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
) -> AsyncIterator[Program]:
    """Run the wheel's program, else the one on PATH, in the block, and kill it at the end.

    `min_version` is the least major version; `url` is the database that it connects to. Raises:
    ProgramMissing.
    """
    path = await _find_program(name, min_version)
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            env=None if url is None else _build_environment(url),
            stdin=stdin,
            stdout=stdout,
            stderr=errors,
            # A terminal's Ctrl-C is for this process, which then ends the program.
            start_new_session=True,
        )
        try:
            yield Program(name, process, errors)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _find_program(name: str, min_version: int) -> str:
    path = _find_path(name)
    if path is None:
        raise ProgramMissing(name, min_version, "and there is none")
    process = await asyncio.create_subprocess_exec(path, "--version", stdout=PIPE)
    output, _ = await process.communicate()
    version = re.search(rb"\) (\d+)", output)
    if version is None or int(version[1]) < min_version:
        raise ProgramMissing(
            name, min_version, f"{path} is {output.decode(errors='replace').strip()}"
        )
    return path


def _find_path(name: str) -> str | None:
    try:
        return str(find_programs_dir() / name)
    except EmbeddedServerFailed:
        return shutil.which(name)


def _build_environment(url: URL) -> Mapping[str, str]:
    """Return the environment with the URL's parts: others could read a password in arguments."""
    variables = {
        "PGHOST": url.host or url.query.get("host"),
        "PGPORT": url.port or url.query.get("port"),
        "PGDATABASE": url.database,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGSSLMODE": url.query.get("ssl") or url.query.get("sslmode"),
    }
    return os.environ | {name: str(value) for name, value in variables.items() if value}
