"""Render the sprite atlas of the pocket world from the Noto Color Emoji font.

    python recipes/build_pocket_atlas.py --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

The font is in the Debian package fonts-noto-color-emoji; which characters are drawn, in which order and under which
class name is written in peft_cbpt/pocket/assets/sprites.txt.
"""

import argparse
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from peft_cbpt.pocket.atlas import ATLAS_COLUMNS, ATLAS_FILE, SPRITE_SIZE, read_sprite_list

FONT_STRIKE = 109  # the only bitmap size of the font, in px


def draw_sprite(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji as an RGBA square of `SPRITE_SIZE` px, centred and filling the square."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((12, 12), character, font=font, embedded_color=True)
    drawn = canvas.crop(canvas.getbbox())
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)


def main(font_file: Path, output: Path) -> None:
    font = ImageFont.truetype(str(font_file), FONT_STRIKE)
    sprites = read_sprite_list()
    rows = -(-len(sprites) // ATLAS_COLUMNS)
    atlas = Image.new("RGBA", (ATLAS_COLUMNS * SPRITE_SIZE, rows * SPRITE_SIZE))
    for index, unicode_name in enumerate(sprites.values()):
        row, column = divmod(index, ATLAS_COLUMNS)
        sprite = draw_sprite(unicodedata.lookup(unicode_name), font)
        atlas.paste(sprite, (column * SPRITE_SIZE, row * SPRITE_SIZE))
    atlas.save(output, lossless=True, quality=100, method=6)
    print(f"{len(sprites)} sprites of {SPRITE_SIZE} px, {output.stat().st_size / 1e6:.2f} MB: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--output", type=Path, default=ATLAS_FILE)
    arguments = parser.parse_args()
    main(arguments.font, arguments.output)
