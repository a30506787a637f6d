"""Pictures with at most 256 colours: a screenshot of text and boxes looks the same, and takes a third of the bytes.

The browser that made a picture counts its colours and finds the nearest of those it keeps; here they are written down as PNG
(https://www.w3.org/TR/png/, colour type 3).
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode, b64encode

from playwright.async_api import Page

# Colours are gathered in cells of 5 bits a channel; the fullest cells are kept, each by its mean.
_QUANTISE = """async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const cells = new Map();
  for (let i = 0; i < pixels.length; i += 4) {
    const cell = (pixels[i] >> 3 << 10) | (pixels[i + 1] >> 3 << 5) | pixels[i + 2] >> 3;
    let sum = cells.get(cell);
    if (!sum) cells.set(cell, sum = [0, 0, 0, 0]);
    sum[0]++; sum[1] += pixels[i]; sum[2] += pixels[i + 1]; sum[3] += pixels[i + 2];
  }
  const kept = [...cells.values()].sort((a, b) => b[0] - a[0]).slice(0, 256)
    .map(([n, r, g, b]) => [Math.round(r / n), Math.round(g / n), Math.round(b / n)]);
  const nearest = new Map();
  let indices = "";
  for (let i = 0; i < pixels.length; i += 4) {
    const colour = pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2];
    let place = nearest.get(colour);
    if (place === undefined) {
      let least = Infinity;
      kept.forEach(([r, g, b], k) => {
        const far = (r - pixels[i]) ** 2 + (g - pixels[i + 1]) ** 2 + (b - pixels[i + 2]) ** 2;
        if (far < least) { least = far; place = k; }
      });
      nearest.set(colour, place);
    }
    indices += String.fromCharCode(place);
  }
  return [image.width, image.height, kept.flat(), btoa(indices)];
}"""


async def in_few_colours(page: Page, png: bytes) -> bytes:
    """The same picture as a palette PNG; ``page`` is any page whose policy is not in the way, such as about:blank."""
    url = "data:image/png;base64," + b64encode(png).decode()
    width, height, colours, indices = await page.evaluate(_QUANTISE, url)
    rows = b64decode(indices)
    # Rows are not filtered: that is for pictures whose neighbours differ by little, and indices are only equal or not.
    data = b"".join(b"\0" + rows[start : start + width] for start in range(0, width * height, width))
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        _chunk(b"PLTE", bytes(colours)),
        _chunk(b"IDAT", zlib.compress(data, 9)),
        _chunk(b"IEND", b""),
    ])  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
