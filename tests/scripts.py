"""Scripts that the house model can draw."""

from __future__ import annotations

from typing import Any

from actors.catalog import Catalog

LOGLINE = "A red boat crosses the sea at night"


def script_of(catalog: Catalog, *subjects: str) -> dict[str, Any]:
    model = catalog.model("house-video")
    words = {kind: model.vocabulary.words(kind)[0] for kind in model.vocabulary.kinds}  # type: ignore[union-attr]
    shots = []
    for n, subject in enumerate(subjects):
        fields = {**words, "subject": subject}
        shots.append(
            {
                "id": f"sh{(n + 1) * 10:03}",
                "fields": fields,
                "prompt": model.caption(fields),
                "narration": f"The {subject} goes on.",
            }
        )
    return {
        "title": "The Crossing",
        "logline": LOGLINE,
        "model": "house-video",
        "seed": 7,
        "continuity": [],
        "notes": [],
        "scenes": [{"heading": "Somewhere", "place": words["place"], "shots": shots}],
    }
