"""A picture of some images of a prepared set, with their classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from heliostat.data.decoding import open_image
from heliostat.data.prepared.index import Index
from heliostat.data.prepared.row_groups import RowGroups, read_labels
from heliostat.training.storage import Storage

_COLUMNS, _SIDE, _CAPTION = 8, 112, 14
_GROUPS = 4


def draw_contact_sheet(storage: Storage, index: Index, path: Path, count: int = 64) -> None:
    """Draw about ``count`` images, from row groups evenly spread over the set.

    Raises:
        InputError: the files do not fit the index.
        RunError: an image cannot be read.
        OSError: the picture cannot be written.
    """
    labels = read_labels(storage, index)
    groups = RowGroups(storage, index, index.largest_group)
    many = len(index.starts) - 1
    rows: list[tuple[int, bytes]] = []
    for number in np.unique(np.linspace(0, many - 1, min(_GROUPS, many)).astype(int)).tolist():
        column = groups.get([number])[number]
        taken = min(len(column), -(-count // min(_GROUPS, many)))
        rows += [(int(index.starts[number]) + row, column[row].as_py()) for row in range(taken)]
    lines = -(-len(rows) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, lines * (_SIDE + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (row, encoded) in enumerate(rows):
        left, top = place % _COLUMNS * _SIDE, place // _COLUMNS * (_SIDE + _CAPTION)
        image = open_image(encoded, channels=index.settings.channels)
        enlarged = max(1, (_SIDE - 4) // max(image.size))
        if enlarged > 1:
            image = image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST)
        image.thumbnail((_SIDE - 4, _SIDE - 4))
        sheet.paste(image, (left + 2, top + 2))
        if labels is not None and index.classes is not None:
            draw.text((left + 2, top + _SIDE), index.classes[labels[row]][:18], fill="black")
    content = io.BytesIO()
    sheet.save(content, "PNG")
    path.write_bytes(content.getvalue())
