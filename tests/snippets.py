"""The Python blocks of a Markdown file, by section."""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
_HEADING = re.compile(r"#+ (.*)")
_FENCE = re.compile(r"\s*```(\w*)")


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, and the code of its Python blocks on the lines that they have."""

    path: pathlib.Path
    heading: str
    code: str

    def run(self, names):
        exec(compile(self.code, self.path, "exec"), names)


def sections(path):
    """The sections of `path` that have Python blocks, in their order."""
    found, heading, lines, language = [], "", [], None
    # The lines between blocks stay as empty ones, so that an error has its line.
    for number, line in enumerate(path.read_text().splitlines()):
        fence = _FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        elif language == "python":
            lines += [""] * (number - len(lines)) + [line]
        elif language is None and (match := _HEADING.match(line)):
            found += [Section(path, heading, "\n".join(lines))] if lines else []
            heading, lines = match[1], []
    return found + ([Section(path, heading, "\n".join(lines))] if lines else [])
