"""The seed of an episode."""

from __future__ import annotations

import hashlib


def episode_seed(seed: int, episode: int) -> int:
    """From 0 to 2**31 - 1, which all environments accept: that of a lane's episode, counted from 0, so that any episode
    can be played again without those before it. A hash, since a draw with torch takes longer than many a step."""
    digest = hashlib.blake2b(f"{seed}:environment/episode:{episode}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
