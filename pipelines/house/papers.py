"""The papers the theatre is cut from: their roles, from back to front, and their colours by place and by hue.

A picture is a stack of papers. Each point of a frame belongs to one paper; which one (its *role*) is the shape, and
what colour that paper has follows from the place (backdrop roles) or from the hue of the subject (subject roles).
Colours run from the top of the frame to its bottom, so that a backdrop glows. Depth is the order of the roles.
"""

from __future__ import annotations

ROLES = ("sky", "glow", "far", "mid", "near", "body", "mark", "light")
NUM_BACKDROP_ROLES = 5

# place: role: (colour at the top of the frame, colour at the bottom)
PLACE_PAPERS: dict[str, dict[str, tuple[str, str]]] = {
    "meadow": {
        "sky": ("#8fd0e6", "#e9f4e4"),
        "glow": ("#ffd968", "#fff0b8"),
        "far": ("#a5d3a0", "#b9dba3"),
        "mid": ("#7cbd78", "#6fb36c"),
        "near": ("#4c9a5c", "#2f7a47"),
    },
    "sea": {
        "sky": ("#161d49", "#4a5a9a"),
        "glow": ("#fbeebb", "#f2d98a"),
        "far": ("#3a62a8", "#3a62a8"),
        "mid": ("#284b8c", "#24437f"),
        "near": ("#1b3468", "#11234c"),
    },
    "desert": {
        "sky": ("#f49a68", "#fde3ac"),
        "glow": ("#ffe9a8", "#fff3cf"),
        "far": ("#d9825a", "#e0956a"),
        "mid": ("#c7683f", "#b95a38"),
        "near": ("#97452f", "#7a3327"),
    },
    "city": {
        "sky": ("#5b4b94", "#f3a79c"),
        "glow": ("#ffdc7a", "#ffc75a"),
        "far": ("#77689f", "#8f7bac"),
        "mid": ("#4b4479", "#574d86"),
        "near": ("#2a2850", "#1f1d40"),
    },
    "mountains": {
        "sky": ("#a9c9ea", "#edf3fa"),
        "glow": ("#ffffff", "#f3f7fc"),
        "far": ("#8ea9cc", "#a4bbd8"),
        "mid": ("#627fa9", "#7390b6"),
        "near": ("#dfeaf5", "#c3d6ea"),
    },
    "reef": {
        "sky": ("#58cdd0", "#0f6f93"),
        "glow": ("#d9f7ef", "#b5ece6"),
        "far": ("#2c9bb0", "#1c7f9c"),
        "mid": ("#f08c86", "#d9656f"),
        "near": ("#f6d9a4", "#e6bd7c"),
    },
    "forest": {
        "sky": ("#fbe7bd", "#f7d08d"),
        "glow": ("#f0a63c", "#e27f2a"),
        "far": ("#d99a5b", "#cf8a4d"),
        "mid": ("#a65c34", "#8f4a2b"),
        "near": ("#5f3527", "#46251d"),
    },
    "space": {
        "sky": ("#0f0e26", "#32276a"),
        "glow": ("#fdf1c8", "#f6dd9a"),
        "far": ("#8a63c4", "#a878d2"),
        "mid": ("#6a6690", "#5d5983"),
        "near": ("#433f68", "#332f54"),
    },
}

# hue: (body, mark, light); the mark is a deeper shade of the body, the light a cream paper
HUE_PAPERS: dict[str, tuple[str, str, str]] = {
    "red": ("#dc3530", "#96202a", "#fff4dc"),
    "orange": ("#f5862a", "#b9560f", "#fff4dc"),
    "yellow": ("#fbd02f", "#c98a10", "#fffaf0"),
    "green": ("#3fae52", "#1f6e38", "#fff4dc"),
    "blue": ("#2b74d6", "#173f8c", "#fff4dc"),
    "purple": ("#8b48bd", "#552780", "#fff4dc"),
    "pink": ("#f785b6", "#c8457f", "#fff7ee"),
    "white": ("#fdfaf3", "#8f8ca3", "#5b5874"),
}
