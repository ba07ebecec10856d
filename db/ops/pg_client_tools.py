"""The programs of PostgreSQL's client: where they are, how they are run, what they say."""

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
    """`name` is not there, or too old for the server; the message says what to install."""

    def __init__(self, name: str, min_version: int, found: str) -> None:
        super().__init__(
            f"{name} of PostgreSQL {min_version} or newer is needed, {found}: install the package"
            f" postgresql-client-{min_version}, or dagi-node-registry[embedded], which brings it"
        )
        self.name = name


class ProgramFailed(Exception):
    """`problem` is the first error of which the program told."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem.removeprefix(f'{name}: ')}")
        self.problem = problem


class Program:
    """One that runs. Errors go to a file: nobody need read them for it to go on."""

    def __init__(self, name: str, process: Process, errors: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._errors = errors

    async def finish(self) -> None:
        """Ends its input, and waits. Raises ProgramFailed unless it ends well."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if await self._process.wait():
            self._errors.seek(0)
            lines = self._errors.read(_CHUNK_BYTES).decode(errors="replace").splitlines()
            first = next((line for line in lines if "error" in line.lower()), *lines[:1])
            raise ProgramFailed(self._name, first)

    async def write(self, data: bytes) -> None:
        """Raises ConnectionError once it has ended."""
        assert self._process.stdin is not None  # noqa: S101  # it was started to be told
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def read_lines(self) -> AsyncIterator[bytes]:
        """Of short ones; what follows the last that was taken stays for `chunks`."""
        assert self._process.stdout is not None  # noqa: S101  # it was started to be read
        async for line in self._process.stdout:
            yield line

    async def read_chunks(self) -> AsyncIterator[bytes]:
        assert self._process.stdout is not None  # noqa: S101  # it was started to be read
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
    """That of the wheel, else the one on PATH, of at least this major version; killed at the end of
    the block if it has not ended. Raises ProgramMissing.
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
            # A Ctrl-C of the terminal is for whoever runs it, who ends it.
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
    """A password on the command line others could see."""
    variables = {
        "PGHOST": url.host or url.query.get("host"),
        "PGPORT": url.port or url.query.get("port"),
        "PGDATABASE": url.database,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGSSLMODE": url.query.get("ssl") or url.query.get("sslmode"),
    }
    return os.environ | {name: str(value) for name, value in variables.items() if value}
