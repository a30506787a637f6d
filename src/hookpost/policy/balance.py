"""How many shards of a pool are a worker's part.

Pure. Every worker sees the same list of the living and answers for itself, so no one has to tell the others. The parts
add up to the whole and differ by one at most. The first in the order of ids have the larger ones, so one that joins
makes nobody's part larger, one that leaves makes nobody's smaller, and no shard moves that need not be moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID


def fair_part(shards: int, living: Sequence[UUID], node_id: UUID) -> int:
    """Of so many shards, how many ``node_id`` is to own. It is one of the ``living`` workers of the pool."""
    each, odd = divmod(shards, len(living))
    return each + (sorted(living).index(node_id) < odd)
