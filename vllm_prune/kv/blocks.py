"""The block manager of requests whose cache is shorter than their text."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from .commands import Compaction


class CompactingManager(FullAttentionManager):
    """vLLM's manager, which counts logical tokens, for requests of which some are no longer cached.

    Attributes:
        evicted: rows evicted so far, per compacted request.
    """

    evicted: dict[str, int]

    @classmethod
    def upgrade(cls, manager: FullAttentionManager) -> CompactingManager:
        """Turn vLLM's manager into ours, before it has seen a request."""
        manager.__class__ = cls
        assert isinstance(manager, cls)
        manager.evicted = {}
        return manager

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        """As vLLM's, for cached instead of logical lengths."""
        evicted = self.evicted.get(request_id, 0)
        return super().get_num_blocks_to_allocate(
            request_id,
            num_tokens - evicted,
            new_computed_blocks,
            total_computed_tokens - evicted,
            num_local_computed_tokens - evicted,
            num_tokens_main_model - evicted,
            *args,
            **kwargs,
        )

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """As vLLM's, for cached instead of logical lengths."""
        evicted = self.evicted.get(request_id, 0)
        return super().allocate_new_blocks(request_id, num_tokens - evicted, num_tokens_main_model - evicted)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Also called on preemption, after which the request is prefilled in full."""
        self.evicted.pop(request_id, None)
        return super().pop_blocks_for_free(request_id)

    def gained(self, request_id: str, keep: int) -> int:
        """How many more blocks the pool has once a request holds `keep` rows; negative where shared ones stay."""
        returning = sum(block.ref_cnt == 1 for block in self.req_to_blocks[request_id])
        return returning - cdiv(keep, self.block_size)

    def compact(self, request_id: str, rows: int, keep: int) -> tuple[Compaction, int]:
        """Swap a request's blocks for fresh ones that hold `keep` rows; the pool has to have them.

        The old blocks go back to the pool: those that other requests share or that the prefix cache knows
        stay as they are. The copy runs at the start of the coming step, before anything writes to them.

        Returns:
            The command and the number of blocks that the request holds less.
        """
        old = self.req_to_blocks[request_id]
        need = cdiv(keep, self.block_size)
        source = tuple(block.block_id for block in old[: cdiv(rows, self.block_size)])
        self.block_pool.free_blocks(reversed(old))
        new = self.block_pool.get_new_blocks(need)
        self.req_to_blocks[request_id] = new
        self.num_cached_block[request_id] = len(new)
        before = self.evicted.get(request_id, 0)
        self.evicted[request_id] = before + rows - keep
        target = tuple(block.block_id for block in new)
        command = Compaction(request_id, rows, keep, before, source, target, self.kv_cache_group_id)
        return command, len(old) - len(new)


class CompactingCoordinator(KVCacheCoordinator):
    """In front of the class of vLLM's coordinator, which makes all cache groups of a model agree.

    Only groups of full attention are compacted. What the others go on to hold of such a request, states of a
    recurrence or rows of a sliding window, follows from what was kept, and is no prefix for anybody else.

    Attributes:
        compacting: managers of the groups of full attention, by the index of their group.
        evicted: rows evicted so far per request that is compacted in any group, in the first of those groups.
    """

    compacting: dict[int, CompactingManager]
    evicted: Mapping[str, int]

    @classmethod
    def upgrade(cls, coordinator: KVCacheCoordinator) -> CompactingCoordinator:
        """Turn vLLM's coordinator into ours, and its managers of full attention, before they have seen a request."""
        managers = enumerate(coordinator.single_type_managers)
        full = {index: manager for index, manager in managers if type(manager) is FullAttentionManager}
        kind = type(coordinator)
        coordinator.__class__ = type(f"Compacting{kind.__name__}", (cls, kind), {})
        assert isinstance(coordinator, cls)
        coordinator.compacting = {index: CompactingManager.upgrade(manager) for index, manager in full.items()}
        # A chain looks up in each of its maps in turn, and one map needs no chain.
        maps = [manager.evicted for manager in coordinator.compacting.values()]
        coordinator.evicted = maps[0] if len(maps) == 1 else ChainMap(*maps)
        return coordinator

    def cache_blocks(self, request: Any, num_computed_tokens: int) -> None:
        """As vLLM's, except for compacted requests: no group has anything of theirs that a prefix could match."""
        if request.request_id not in self.evicted:
            super().cache_blocks(request, num_computed_tokens)

    def compact(self, request_id: str, lengths: Iterable[tuple[int, int, int]]) -> list[tuple[Compaction, int]] | None:
        """Shorten a request in some of the groups, or in none of them.

        A group's new blocks may be old ones of itself or of the groups before it, never of those behind it, so workers
        that carry out the commands in their order have read what they overwrite.

        Args:
            request_id: the request.
            lengths: index of the group, rows that it holds, rows that it keeps.

        Returns:
            Per group the command and the number of blocks that the request holds less; None when the pool cannot give
            the new blocks of all of them now.
        """
        lengths, free = list(lengths), self.block_pool.get_num_free_blocks()
        for group, _, keep in lengths:
            free += self.compacting[group].gained(request_id, keep)
            if free < 0:
                return None
        return [self.compacting[group].compact(request_id, rows, keep) for group, rows, keep in lengths]
