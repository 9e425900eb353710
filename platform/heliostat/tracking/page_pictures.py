"""Pictures of runs on the comparison's page: those of the same name in one row."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from heliostat.tracking.comparison import Comparison
from heliostat.tracking.page_tables import swatch

MOST = 8
"""Groups of which pictures are shown."""
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


def picture_rows(
    comparison: Comparison,
    order: Sequence[int],
    styles: Sequence[str],
    figures: Mapping[str, Sequence[tuple[str, bytes]]],
) -> str:
    """A row for each name, in it the pictures of the groups; empty where there are none.

    Args:
        order: indices of groups, the best first.
        figures: by run id: (path, content).
    """
    names: dict[str, list[str]] = {}
    for index in order:
        group = comparison.groups[index]
        run = next((run for run in group.runs if figures.get(run.id)), None)
        for path, content in figures.get(run.id, ()) if run is not None else ():
            name = path.rpartition("/")[2].rpartition(".")[0]
            kind = _TYPES["." + path.rpartition(".")[2].lower()]
            data = base64.b64encode(content).decode()
            names.setdefault(name, []).append(
                f"<figure><figcaption>{swatch(styles[index])}{escape(group.label)}</figcaption>"
                f'<img alt="{escape(name)} of {escape(group.label)}" src="data:{kind};base64,{data}"></figure>'
            )
    return "".join(
        f'<h3>{escape(name)}</h3><div class="pictures">{"".join(pictures)}</div>' for name, pictures in names.items()
    )
