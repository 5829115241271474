"""The one shape of an example in the image shards, whichever data set it came from.

Its image is in a file of pixels, see :mod:`repgls_jax.data.pixels`; all else, and the image's checksum, in ArrayRecord.
Report text is not part of it: shards may travel where text may not.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from repgls_jax.data.images import Bits

# numpy's only guess for these would be float64 or int64
_CASTS = {
    "age": np.int16,
    "labels": np.int8,
    "observed": np.bool_,
    "truth": np.int8,
    "contrast": np.float32,
    "belief": np.float32,
}
TEXT = ("image_id", "patient_id", "study_id", "view", "sex")
SIMULATED = ("truth", "contrast", "belief", "reader", "masks")
MASK_BITS = 16
PIXELS: dict[Bits, type[np.unsignedinteger[Any]]] = {8: np.uint8, 16: np.uint16}

CHECKSUM = "image_crc32"


def spec(image_size: int, c: int, simulated: bool) -> tfds.features.FeaturesDict:
    """Features of one example, all but its image.

    Args:
      image_size: side of the square image in pixels.
      c: findings in the vocabulary.
      simulated: adds the phantom's known truth.

    Returns:
      image_crc32 uint32 of the image's bytes; image_id, patient_id, study_id, view, sex ("F", "M" or ""); age int16
      (years, -1 unknown); has_report bool; labels int8 [c] (label states, -2 where none was given); observed bool [c]
      (a label was given).
      If simulated also truth int8 [c] in {0, 1}, contrast float32 [c], belief float32 [c] in [0, 1], reader int32,
      masks uint16 [h, w, 1] (bit k = finding k).

    Raises:
      ValueError: masks cannot hold that many findings.
    """
    if simulated and c > MASK_BITS:
        raise ValueError(f"masks hold {MASK_BITS} findings, one bit each; this vocabulary has {c}")
    tensor, shape = tfds.features.Tensor, (image_size, image_size, 1)
    fields: dict[str, Any] = {
        CHECKSUM: np.uint32,
        **{name: tfds.features.Text() for name in TEXT},
        "age": np.int16,
        "has_report": np.bool_,
        "labels": tensor(shape=(c,), dtype=np.int8),
        "observed": tensor(shape=(c,), dtype=np.bool_),
    }
    if simulated:
        fields |= {
            "truth": tensor(shape=(c,), dtype=np.int8),
            "contrast": tensor(shape=(c,), dtype=np.float32),
            "belief": tensor(shape=(c,), dtype=np.float32),
            "reader": np.int32,
            # zlib, not PNG: without OpenCV, TFDS refuses to decode 16-bit PNG. The zeros compress as well.
            "masks": tensor(shape=shape, dtype=np.uint16, encoding="zlib"),
        }
    return tfds.features.FeaturesDict(fields)


def example(record: dict[str, Any], simulated: bool, checksum: int) -> dict[str, Any]:
    """A record as the example that :func:`spec` describes; the image and the report's text are left behind.

    Raises:
      KeyError: the record lacks a field.
    """
    fields: dict[str, Any] = {CHECKSUM: np.uint32(checksum), "has_report": bool(record["has_report"])}
    fields |= {name: record[name] for name in TEXT}
    names = ("age", "labels", "observed", *(SIMULATED if simulated else ()))
    for name in names:
        fields[name] = np.asarray(record[name], _CASTS[name]) if name in _CASTS else record[name]
    if simulated:
        fields["reader"] = np.int32(record["reader"])
        fields["masks"] = record["masks"][..., None]
    return fields
