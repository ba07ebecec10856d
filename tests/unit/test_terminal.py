"""What a terminal shows of texts that others chose."""

import ast
import json
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import agent.logs
import agent.terminal
import graph.core.terminal
import graph.telemetry.logs
from agent.cli import print_node
from agent.replies import Node
from graph.cli.profile_yaml import TerminalDumper
from tests.support.paths import ROOT
from tests.support.scripted_registry import NODE

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\u200b\x9b31m\r\x7f\U000e0041\ud800\n"
TERMINALS = [agent.terminal, graph.core.terminal]
_TEXTS = st.text(st.characters()) | st.text(st.characters(categories=["Cc", "Cf", "Zl", "Cs"]))


def is_harmless(text: str) -> bool:
    return all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text)


@given(_TEXTS)
def test_an_escaped_text_is_one_harmless_line(text: str) -> None:
    for module in TERMINALS:
        escaped = module.escape(text)
        assert is_harmless(escaped)
        if text.isprintable():
            assert escaped == text
        assert module.escape_lines(text).count("\n") == text.count("\n")
        assert is_harmless(module.escape_lines(text).replace("\n", ""))


def test_readable_text_of_any_script_is_shown_as_it_is() -> None:
    for text in ("Größe 12 µm", "узел", "ノード", "عقدة", "🚀 gpu-1"):
        assert agent.terminal.escape(text) == text


@pytest.mark.parametrize("as_json", [False, True])
def test_a_node_is_printed_without_what_a_terminal_obeys(
    as_json: bool,  # noqa: FBT001  # a parameter of the test
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = {"name": HOSTILE, "role": HOSTILE, "hostname": HOSTILE, "labels": [HOSTILE, "gpu"]}
    node = Node.model_validate({**NODE, **texts})
    print_node(node, as_json=as_json)
    output = capsys.readouterr().out
    lines = output.removesuffix("\n").split("\n")
    assert all(map(is_harmless, lines))
    assert len(lines) == (1 if as_json else 10)
    if as_json:
        assert json.loads(output)["name"] == HOSTILE


def test_log_events_escape_what_a_terminal_obeys() -> None:
    for module in (agent.logs, graph.telemetry.logs):
        event = module.escape_values(
            None, "info", {"reason": HOSTILE, "exception": f"a\n{HOSTILE}"}
        )
        assert is_harmless(event["reason"])
        assert is_harmless(event["exception"].replace("\n", ""))
        assert event["exception"].startswith("a\n")


@given(
    st.recursive(
        st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    )
)
def test_escaped_yaml_means_the_same(value: object) -> None:
    document = yaml.dump(value, Dumper=TerminalDumper, sort_keys=False, allow_unicode=True)
    assert yaml.safe_load(graph.core.terminal.escape_lines(document)) == value


def test_nothing_prints_but_the_terminals() -> None:
    printing = set()
    for path in [*ROOT.glob("agent/*.py"), *ROOT.glob("graph/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"echo", "secho", "echo_via_pager"}:
                printing.add(path.relative_to(ROOT))
    assert printing == {Path("agent/terminal.py"), Path("graph/core/terminal.py")}
