"""The names of ImageNet's 1,000 classes, which timm carries (Apache-2.0): this package has no list of its own.

timm is imported when names are asked for, when a network is built. The network keeps them, so that running it needs no
timm.
"""

from __future__ import annotations

import functools
from collections import Counter

from pyvimtrt.errors import brief

CLASSES = 1000


class LabelsNote(UserWarning):
    """What is said about the names of classes; the command line prints it."""


@functools.cache
def class_names() -> tuple[tuple[str, ...], str]:
    """Return the names in the order of the classes, and nothing; or no names, and why there are none.

    Of a class' synonyms the first is taken, unless it is another class' first too.
    """
    try:
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        synonyms = [str(info.index_to_description(number, detailed=False)) for number in range(info.num_classes())]
    except ImportError:
        return (), "the package timm is not installed"
    except Exception as error:  # of a timm that is broken or of another interface: names are no reason to end
        return (), f"timm gives none ({brief(error)})"
    first = [text.partition(",")[0].strip() for text in synonyms]
    count = Counter(first)
    names = tuple(name if count[name] == 1 else text for name, text in zip(first, synonyms, strict=True))
    return (names, "") if len(names) == CLASSES else ((), f"timm gives {len(names)}")
