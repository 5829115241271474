"""Reading image files that nobody vouches for."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from repgls_jax.data import images


def _png_header(width, height):
    """A PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 1000) + b"IDAT"


def test_a_square_grey_image_of_the_right_size_comes_back_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png", 32, 64), pixels)


@pytest.mark.parametrize(("shape", "box"), [((40, 80), (8, 24, 0, 32)), ((80, 40), (0, 32, 8, 24))])
def test_aspect_is_kept_and_the_rest_padded_with_black(tmp_path, shape, box):
    Image.fromarray(np.full(shape, 200, np.uint8)).save(tmp_path / "a.png")
    image = images.read(tmp_path / "a.png", 32, 64)
    top, bottom, left, right = box
    assert (image[top:bottom, left:right] == 200).all()
    image[top:bottom, left:right] = 0
    assert not image.any()


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (128, 64))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert np.abs(images.read(tmp_path / "a.png", 32, 64)[:, 1:-1].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_images_are_scaled_by_their_bit_depth(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 256 * 256).astype(np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    expected = np.rint(ramp.astype(np.float64) * 255 / (2**bits - 1))
    assert np.abs(images.read(tmp_path / "a.png", 256, 64) - expected).max() <= 1


def test_colour_alpha_palette_and_jpeg_become_grey(tmp_path):
    grey = np.full((16, 16), 90, np.uint8)
    for mode, name in [("RGB", "a.png"), ("RGBA", "b.png"), ("P", "c.png"), ("LA", "d.png"), ("RGB", "e.jpg")]:
        Image.fromarray(grey).convert(mode).save(tmp_path / name)
        assert np.abs(images.read(tmp_path / name, 16, 64).astype(int) - 90).max() <= 2, mode


def test_an_extreme_aspect_still_has_pixels(tmp_path):
    Image.fromarray(np.full((1, 1000), 255, np.uint8)).save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png", 16, 64).sum() == 16 * 255


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bomb.png", _png_header(100_000, 100_000), "claims more than 64 megapixels"),
        ("large.png", _png_header(9000, 9000), "claims more than 64 megapixels"),
        ("warned.png", _png_header(12_000, 12_000), "claims more than 64 megapixels"),
        ("nopixels.png", _png_header(10, 10), "not a readable PNG or JPEG"),
        ("text.png", b"this is prose\n", "not a readable PNG or JPEG"),
        ("empty.png", b"", "not a readable PNG or JPEG"),
        ("gif.png", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not a readable PNG or JPEG"),
    ],
)
def test_hostile_files_are_refused_with_a_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(images.UnusableImageError, match=reason) as caught:
        images.read(tmp_path / name, 32, 64)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(images.UnusableImageError, match="not a readable"):
        images.read(path, 32, 64)


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)).save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(8, len(whole), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert images.read(path, 16, 64).shape == (16, 16)
        except images.UnusableImageError:
            continue


def test_paths_stay_inside_the_folder(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "images").mkdir(parents=True)
    for path in (outside, root / "a.png", root / "images" / "b.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    assert images.locate(root, "a.png") == images.locate(root, "inner.png") == (root / "a.png").resolve()
    assert images.locate(root, "b.png") == (root / "images" / "b.png").resolve()
    for name in ("../outside.png", str(outside), "link.png"):
        with pytest.raises(images.UnusableImageError, match="leads out of the data folder"):
            images.locate(root, name)
    for name in ("none.png", "loop.png", "images", "a\0.png", "x" * 5000):
        with pytest.raises(images.UnusableImageError, match="no such file"):
            images.locate(root, name)
