"""The page that the browser shows at the end of a sign-in. Text is escaped; no secret is passed in."""

from __future__ import annotations

from html import escape

__all__ = ["as_sentence", "page"]


def page(title: str, text: str) -> bytes:
    """Return an HTML page in UTF-8 that loads nothing; `title` and `text` are plain text."""
    return _PAGE.format(title=escape(title), text=escape(text)).encode()


def as_sentence(message: str) -> str:
    """Return an error's message with a capital and a full stop."""
    first = message.partition(" ")[0].rstrip(".,:;")
    # A URL or a file name stays as it is: in capitals it would name something else.
    is_name = any(mark in first for mark in "./\\:@")
    sentence = message if is_name else message[:1].upper() + message[1:]
    return sentence if sentence.endswith("?") else f"{sentence}."


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ --back: #fff; --text: #1f2328; --soft: #59636e }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #16191d; --text: #e6e8eb; --soft: #9aa4af }} }}
html {{ background: var(--back); color: var(--text) }}
body {{
  font: 1.1rem/1.5 system-ui, sans-serif;
  max-width: 34rem; margin: 18vh auto; padding: 0 1.5rem; overflow-wrap: anywhere;
}}
h1 {{ font-size: 1.6rem; line-height: 1.2 }}
p {{ color: var(--soft) }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
</body>
</html>
"""
