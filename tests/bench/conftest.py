"""The fixtures of tests/protocol: real back-ends with an image."""

from tests.protocol.conftest import image, image_bytes, maker, start

__all__ = ["image", "image_bytes", "maker", "start"]
