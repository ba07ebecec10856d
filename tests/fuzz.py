"""Search for inputs that the registry does not stand: python -m tests.fuzz TARGET [CORPUS].

Inputs are found by coverage where atheris is installed (pip install atheris), else drawn by
hypothesis. Atheris keeps those that reach new code in CORPUS, and the one that fails in ./crash-*.
"""

import importlib.util
import itertools
import sys
import tempfile
import time
from pathlib import Path

import click


@click.command(help=__doc__)
@click.argument("target", type=click.Choice(["http", "messages", "documents"]))
@click.argument("corpus", type=click.Path(file_okay=False, path_type=Path), required=False)
@click.option("--seconds", type=click.IntRange(1), default=60, show_default=True)
def main(target: str, corpus: Path | None, seconds: int) -> None:
    if importlib.util.find_spec("atheris") is None:
        click.echo("atheris is not installed: inputs are drawn by hypothesis, without coverage.")
        draw_inputs(target, seconds)
    else:
        follow_coverage(target, corpus or Path(tempfile.mkdtemp()), seconds)


def follow_coverage(target: str, corpus: Path, seconds: int) -> None:
    import atheris  # noqa: PLC0415  # optional

    with atheris.instrument_imports(include=["graph", "graphql", "uvicorn", "websockets"]):
        from tests.support.fuzz_corpus import CORPUS  # noqa: PLC0415
        from tests.support.fuzz_targets import TARGETS  # noqa: PLC0415
    corpus.mkdir(parents=True, exist_ok=True)
    with TARGETS[target]() as check:
        folders = [str(corpus), str(CORPUS / target)]
        atheris.Setup([sys.argv[0], *folders, f"-max_total_time={seconds}"], check)
        atheris.Fuzz()


def draw_inputs(target: str, seconds: int) -> None:
    from hypothesis import given, seed, settings  # noqa: PLC0415

    from tests.support.fuzz_corpus import list_corpus, mutations  # noqa: PLC0415
    from tests.support.fuzz_targets import TARGETS  # noqa: PLC0415

    inputs = mutations(list(list_corpus(target).values()))
    end = time.monotonic() + seconds
    with TARGETS[target]() as check:
        for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
            many = settings(max_examples=500, deadline=None, database=None)
            seed(number)(many(given(inputs)(check)))()


if __name__ == "__main__":
    main()
