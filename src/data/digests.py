"""Remembers which of millions of names and images have been seen, in few bytes each."""

import hashlib
from array import array

BITS = 32  # the half of a digest that chooses a slot


def digest(data: bytes) -> int:
    """64 bits that tell contents apart: among three million, two share them with probability 2e-7. Never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1


def short_digest(data: bytes) -> int:
    """32 bits with a sign, for the ids of a batch: of ten thousand contents, two share them in one case of a hundred.

    Never 0.
    """
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "big", signed=True) or 1


class DigestTable:
    """Digests and a whole number each: an open-addressing hash table of 12 bytes a slot, at most two thirds full.

    A dict of the same content takes some 150 bytes an entry.
    """

    def __init__(self) -> None:
        self._keys = array("Q", bytes(8 << 10))
        self._values = array("i", bytes(4 << 10))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def get(self, key: int) -> int | None:
        """The number stored for a digest, or None."""
        slot = self._slot(key)
        return self._values[slot] if self._keys[slot] else None

    def setdefault(self, key: int, value: int) -> int:
        """The number stored for a digest; ``value`` is stored where there is none."""
        slot = self._slot(key)
        if self._keys[slot]:
            return self._values[slot]
        self._keys[slot], self._values[slot] = key, value
        self._used += 1
        if 3 * self._used > 2 * len(self._keys):
            self._grow()
        return value

    def _slot(self, key: int) -> int:
        """Where the digest is, or the empty slot that it belongs to."""
        mask = len(self._keys) - 1
        slot = (key ^ key >> BITS) & mask
        while self._keys[slot] and self._keys[slot] != key:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old = zip(self._keys, self._values, strict=True)
        size = 2 * len(self._keys)
        self._keys, self._values = array("Q", bytes(8 * size)), array("i", bytes(4 * size))
        for key, value in old:
            if key:
                slot = self._slot(key)
                self._keys[slot], self._values[slot] = key, value
