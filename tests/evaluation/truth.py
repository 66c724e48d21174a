"""Ground truth for tests, through the reader that everything else uses."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from sohes.data.coco import ImageSet, read_coco


def image_set(document: dict[str, Any]) -> ImageSet:
    """A COCO document as `read_coco` gives it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(document))
        return read_coco(path)
