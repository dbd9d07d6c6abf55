"""What a person sees of what a program writes to a terminal: wrapped, scrolled, drawn over."""

from __future__ import annotations

import re

__all__ = ["seen_on"]

#: A control sequence, a control character, or a piece of text.
_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class _Screen:
    """A terminal in as far as the demo uses one."""

    def __init__(self, height: int, width: int) -> None:
        self.lines = [""]
        self.height, self.width = height, width
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for char in text:
            if self.column == self.width:
                self.down()
                self.column = 0
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
            self.column += 1

    def down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def control(self, number: str, letter: str) -> None:
        if letter == "A":  # it stops at the top of what is in view
            self.row = max(self.row - int(number), len(self.lines) - self.height, 0)
        elif letter == "K":
            self.lines[self.row] = ""
        else:
            assert letter in "mhl", f"a control sequence that this terminal does not know: {letter}"


def seen_on(height: int, width: int, written: str) -> list[str]:
    """Return the lines in view at the end. The cursor stands on the last one."""
    screen = _Screen(height, width)
    for number, letter, line_control, text in _PIECE.findall(written):
        if letter:
            screen.control(number, letter)
        elif line_control == "\r":
            screen.column = 0
        elif line_control == "\n":  # the terminal's driver has put a return before it
            screen.down()
        else:
            screen.write(text)
    return [line.rstrip() for line in screen.lines[-height:]]
