"""The fuzz targets on the corpus, and on inputs drawn from it; `make fuzz` searches on."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, settings

from tests.support.fuzz_corpus import list_corpus, mutations
from tests.support.fuzz_targets import TARGETS, Target

FEW = 50
MANY = 20_000


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    """One of each kind, because opening one takes as long as a hundred inputs."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(open_target()) for name, open_target in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_breaks_a_promise(targets: dict[str, Target], name: str) -> None:
    for file, data in list_corpus(name).items():
        try:
            targets[name](data)
        except BaseException as error:
            error.add_note(f"the input is tests/corpus/{name}/{file}")
            raise


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_drawn_from_the_corpus_breaks_a_promise(
    targets: dict[str, Target], name: str, *, thorough: bool
) -> None:
    examples = settings(max_examples=MANY if thorough else FEW, database=None)
    examples(given(mutations(list(list_corpus(name).values())))(targets[name]))()
