"""Which characters people can see, by Unicode: the rule for all texts that people read."""

import unicodedata

# Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 16), reserved ones included.
_DEFAULT_IGNORABLE = (
    range(0x00AD, 0x00AE),
    range(0x034F, 0x0350),  # combining grapheme joiner
    range(0x061C, 0x061D),
    range(0x115F, 0x1161),  # Hangul fillers
    range(0x17B4, 0x17B6),  # Khmer inherent vowels
    range(0x180B, 0x1810),  # Mongolian variation selectors
    range(0x200B, 0x2010),
    range(0x202A, 0x202F),
    range(0x2060, 0x2070),
    range(0x3164, 0x3165),  # Hangul filler
    range(0xFE00, 0xFE10),  # variation selectors
    range(0xFEFF, 0xFF00),
    range(0xFFA0, 0xFFA1),  # halfwidth Hangul filler
    range(0xFFF0, 0xFFF9),
    range(0x1BCA0, 0x1BCA4),
    range(0x1D173, 0x1D17B),
    range(0xE0000, 0xE1000),  # tags and variation selectors
)
# Letters and symbols whose glyphs are blank, or stand for an object that a text does not have.
_BLANK = (
    range(0x2800, 0x2801),  # braille pattern blank
    range(0x303F, 0x3040),  # ideographic half fill space
    range(0xFFFC, 0xFFFD),  # object replacement character
    range(0x13441, 0x13443),  # Egyptian hieroglyph blanks
    range(0x16FE4, 0x16FE5),  # Khitan small script filler
    range(0x1BC9D, 0x1BC9E),  # Duployan thick letter selector
    range(0x1D159, 0x1D15A),  # musical symbol null notehead
)
_INVISIBLE = frozenset(
    chr(number) for numbers in (*_DEFAULT_IGNORABLE, *_BLANK) for number in numbers
)


def is_visible(text: str) -> bool:
    """Return whether people can see each character of a text; U+0020 is the only space.

    Others are control, format, private, unassigned and surrogate characters, separators, default
    ignorable code points and blank glyphs.
    """
    return text.isprintable() and (text.isascii() or _INVISIBLE.isdisjoint(text))


def is_name(text: str) -> bool:
    """Return whether a text can be a name that people read.

    It is of words that are separated by single spaces. No word begins with a combining mark, which
    would join what stands before it.
    """
    return is_visible(text) and all(
        word and not unicodedata.category(word[0]).startswith("M") for word in text.split(" ")
    )


def replace_invisible(text: str) -> str:
    """Return a text with "?" for each character that people cannot see."""
    if is_visible(text):
        return text
    return "".join(character if is_visible(character) else "?" for character in text)
