"""Recognition of text in pictures, with the extra `ocr`. Runs confined."""

import importlib.util
import io
from typing import Any

from domain.errors import UnreadableSubmission

MAX_PIXELS = 60_000_000
#: 144 dots an inch: small print is read, and a page takes a second
_SCALE = 2.0
#: below it handwriting and photos come out as other words
_LEAST_CONFIDENCE = 0.7


def recognition_installed() -> bool:
    """Whether the extra is there; nothing is imported."""
    return importlib.util.find_spec("rapidocr_onnxruntime") is not None


class Recogniser:
    """One engine for the pages of one file."""

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR  # type: ignore[import-not-found]  # an extra

        self._engine = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)

    def picture(self, content: bytes) -> str:
        """The lines of a PNG or JPEG, from top to bottom."""
        from PIL import Image, ImageOps  # type: ignore[import-not-found]  # comes with the extra

        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableSubmission(
                        f"The picture has more than {MAX_PIXELS // 1_000_000} megapixels. Save it smaller.",
                        field="file",
                    )
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableSubmission(
                "The picture is damaged. Scan or photograph the page once more.", field="file"
            ) from error
        import numpy

        return self._lines(numpy.asarray(upright)[:, :, ::-1])

    def page(self, page: Any) -> str:
        """The lines of a PDF's page."""
        width, height = page.get_size()
        if width * height * _SCALE**2 > MAX_PIXELS:
            raise UnreadableSubmission("A page is larger than a poster. Print it to A4.", field="file")
        return self._lines(page.render(scale=_SCALE).to_numpy())

    def _lines(self, pixels: Any) -> str:
        found, _ = self._engine(pixels)
        if not found:
            return ""
        if sum(float(score) for *_, score in found) / len(found) < _LEAST_CONFIDENCE:
            raise UnreadableSubmission(
                "The writing cannot be told with certainty. Scan it more clearly, or type the answers.",
                field="file",
            )
        return "\n".join(text for _, text, _ in found)
