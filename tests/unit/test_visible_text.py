"""Names that people can see: the rule over all of Unicode."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.errors import BadInput
from graph.core.validation import check_name, check_note, check_token_name
from graph.core.visible_text import is_name, is_visible, replace_invisible

EVERY_CHARACTER = list(map(chr, range(sys.maxunicode + 1)))
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
FILLERS = "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5\u180b\ufe0f\U000e0100\U0001d159\ufffc"
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
SPACES = "\t\n\v\f\r\x1c\x85\xa0\u1680\u2000\u2007\u200a\u2028\u2029\u202f\u205f\u3000"
OTHERS = "\0\x1b\x7f\x9b\xad\u180e\u200b\u200d\u2060\ufeff\ufff9\ue000\U000e0041\ud800\uffff\u0378"
UNREADABLE = FILLERS + BIDIRECTIONAL + SPACES + OTHERS


def test_no_character_of_an_unseen_category_is_visible_but_the_space() -> None:
    assert [
        character
        for character in EVERY_CHARACTER
        if is_visible(character) and unicodedata.category(character) in UNSEEN
    ] == [" "]


def test_letters_digits_marks_punctuation_and_symbols_are_visible_but_for_few() -> None:
    hidden = [
        character
        for character in EVERY_CHARACTER
        if unicodedata.category(character) not in UNSEEN and not is_visible(character)
    ]
    assert len(hidden) < 300
    # Most are the variation selectors.
    assert {unicodedata.category(character) for character in hidden} <= {"Lo", "Mn", "So"}
    assert not any(character.isascii() for character in hidden)
    assert set(FILLERS) <= set(hidden)


def test_characters_that_are_compatible_with_a_blank_are_not_visible() -> None:
    blanks = set(UNREADABLE) | {" "}
    assert [
        character
        for character in EVERY_CHARACTER
        if is_visible(character)
        and character != " "
        and set(unicodedata.normalize("NFKD", character)[:1]) <= blanks
        and not unicodedata.combining(unicodedata.normalize("NFKD", character)[-1])
    ] == []


@pytest.mark.parametrize("character", UNREADABLE)
def test_a_character_that_cannot_be_seen_is_in_no_name_and_in_no_note(character: str) -> None:
    for name in (character, character * 3, f"a{character}b", f"{character}ab", f"ab{character}"):
        for check in (check_name, check_token_name):
            with pytest.raises(BadInput, match="visible"):
                check("name", name)
        if character not in "\t\n":
            with pytest.raises(BadInput, match="visible"):
                check_note("note", name)


@pytest.mark.parametrize(
    "name",
    [" ", "   ", " a", "a ", "a  b", "\u0301", "\u0301\u0302", "\u20dd", "a \u0301b", "\u0903"],
)
def test_spaces_and_combining_marks_alone_are_no_names(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(BadInput, match="visible"):
        check_name("name", name)


def test_nothing_is_no_name() -> None:
    assert not is_name("")
    with pytest.raises(BadInput):
        check_name("name", "")


@pytest.mark.parametrize(
    "name",
    [
        "gpu-1",
        "Third floor, rack 7",
        "Zo\xeb",
        "Zoe\u0308",
        "Ivan\u2019s MacBook",
        "\u0443\u0437\u0435\u043b 1",
        "\u8282\u70b9",
        "\ud55c\uad6d",
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u0639\u0642\u062f\u0629",
        "\U0001f5a5",
        "NVIDIA RTX\u2122 4000 (Ada)",
    ],
)
def test_names_of_all_scripts_are_names(name: str) -> None:
    assert check_name("name", name) == name


@given(st.text(max_size=30))
def test_a_name_has_something_to_see_in_each_word(text: str) -> None:
    if is_name(text):
        assert text.split() == text.split(" ")
        assert all(
            unicodedata.category(word[0])[0] in "LNPS" and is_visible(word) for word in text.split()
        )
        assert check_name("name", text) == text


@given(st.text(max_size=30))
def test_a_text_with_its_unseen_characters_replaced_is_visible(text: str) -> None:
    replaced = replace_invisible(text)
    assert is_visible(replaced)
    assert len(replaced) == len(text)
    assert replaced == text or not is_visible(text)


def test_notes_have_lines_and_tabs() -> None:
    note = "new disk:\n\t2 TB  NVMe\n"
    assert check_note("note", note) == note
    assert check_note("note", "") == ""
