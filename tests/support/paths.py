"""The paths of the project's own files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def read_files(folder: Path) -> dict[str, str]:
    """Return the text of each file of the folder by its name."""
    return {path.name: path.read_text() for path in folder.iterdir()}
