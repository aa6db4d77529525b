"""The kinds of things that a store holds. They differ in words and commands."""

from enum import StrEnum


class Kind(StrEnum):
    """An image, or a dataset. Its value is the word for people, and with an ``s`` the command."""

    IMAGE = "image"
    DATASET = "dataset"
