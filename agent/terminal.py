"""Text for a terminal: what others chose cannot move its cursor, hide or reorder what it shows."""

import click


def escape(text: str) -> str:
    """Return the text as one line; what is not printable is escaped as in Python and YAML.

    Not printable are, as in Python: control, format (bidirectional and invisible ones among them),
    private and unassigned characters, half surrogates, and all white space but the space.
    """
    return text if text.isprintable() else "".join(map(_escape_character, text))


def escape_lines(text: str) -> str:
    """Return the text escaped except for the ends of its lines."""
    return "\n".join(map(escape, text.split("\n")))


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print lines to standard output or error, escaped."""
    click.echo(escape_lines(text), err=err, nl=nl)


def _escape_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
