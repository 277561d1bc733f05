"""Pages that leave something out, take something for markup, or need more than themselves."""

from __future__ import annotations

import re
from collections.abc import Callable

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "nav", "ul", "li", "a", "main"),
    *("section", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "button", "span", "dl", "dt", "dd"),
    *("figure", "figcaption", "img", "code", "details", "summary", "pre", "script"),
}

PAGES: list[Callable[[str], str]] = [
    lambda text: text.replace("&lt;", "<"),  # nothing is escaped
    lambda text: re.sub(r"<tr><th scope=\"row\">(?:(?!</tr>).)*</tr>(?=</tbody>|\n</tbody>)", "", text),  # no last rows
    lambda text: text.replace("</head>", '<link rel="stylesheet" href="style.css"></head>'),
    lambda text: text.replace("</main>", '<img alt="" src="https://example.org/a.png"></main>'),
    lambda text: text.replace("</main>", "<p>never closed</main>"),
    lambda text: text.replace('<section id="lengths"', '<section id="g0"'),
    lambda text: text.replace('<a href="#origin">', '<a href="#nowhere">'),
    lambda text: text.replace('"use strict";', '"use strict"; alert(1);'),  # not the script that was allowed
    lambda text: text.replace("<main>", '<main onclick="alert(1)">'),
    lambda text: re.sub(r'data-value="(\d)', r'data-value="9\1', text),
    lambda text: text.replace("<td>out of memory</td>", "<td>ok</td>"),
]
