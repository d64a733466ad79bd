"""Draws docs/windows.svg from what the library plans: python docs/draw_windows.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pplx_vectorstore.windows import lay_out, plan_windows

CHUNK_TOKENS = (24, 36, 30, 44, 26, 38, 20, 46, 32, 28, 36, 24)
CAPACITY, MIN_CONTEXT = 200, 25
SCALE, LEFT, ROW = 1.5, 96, 46
CHUNK_FILL, POOLED_FILL, CONTEXT_FILL = "#c5cae9", "#3f51b5", "#e0e0e0"


def draw() -> str:
    """Return the picture as SVG."""
    layout = lay_out([np.zeros(size, int) for size in CHUNK_TOKENS], separator_id=0)
    n_tokens = len(layout.ids)
    windows = plan_windows(layout.chunk_spans, n_tokens, capacity=CAPACITY, min_context=MIN_CONTEXT)
    width, height = LEFT + n_tokens * SCALE + 16, ROW * (len(windows) + 1) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        'font-family="sans-serif" font-size="15">',
        "<title>A document of eight chunks, and the windows it goes through the model in</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        *label("document", 0),
    ]
    for index, (start, stop) in enumerate(layout.chunk_spans):
        parts += box(start, stop, 0, CHUNK_FILL, str(index), "black")
    for row, window in enumerate(windows, start=1):
        parts += label(f"window {row}", row)
        parts += box(window.start, window.stop, row, CONTEXT_FILL)
        for piece in window.pieces:
            parts += box(piece.start, piece.stop, row, POOLED_FILL, str(piece.chunk), "white")
    bottom = height - 14
    for x, fill, text in ((LEFT, POOLED_FILL, "pooled from this window"), (LEFT + 240, CONTEXT_FILL, "context only")):
        parts.append(f'<rect x="{x}" y="{bottom - 13}" width="16" height="16" fill="{fill}"/>')
        parts.append(f'<text x="{x + 24}" y="{bottom}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


def label(text: str, row: int) -> list[str]:
    """Name a row."""
    return [f'<text x="6" y="{row * ROW + 29}">{text}</text>']


def box(start: int, stop: int, row: int, fill: str, text: str = "", colour: str = "") -> list[str]:
    """Draw a token range in a row, maybe with its chunk's number."""
    x, width, y = LEFT + start * SCALE, (stop - start) * SCALE, row * ROW + 8
    shape = f'<rect x="{x:g}" y="{y}" width="{width:g}" height="32" fill="{fill}"/>'
    inner = f'<text x="{x + width / 2:g}" y="{y + 21}" fill="{colour}" text-anchor="middle">{text}</text>'
    return [shape, inner] if text else [shape]


if __name__ == "__main__":
    Path(__file__).with_name("windows.svg").write_text(draw(), "utf-8")
