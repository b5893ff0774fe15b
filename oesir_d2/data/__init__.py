"""Photos and annotations: reading any file that users bring, datasets, mappers to the model's input, made splices."""

from oesir_d2.data.images import DecodedImage, ImageFile, UnreadableImageError, list_images, read_image

__all__ = ["DecodedImage", "ImageFile", "UnreadableImageError", "list_images", "read_image"]
