"""Shards of similar total length."""

from __future__ import annotations

from speechllm.utils.batching import shards_of_like_length


def test_shards_have_similar_lengths():
    # Graham's example: the greedy shards last 11, 8, 8; the best ones 9, 9, 9
    lengths = [3, 5, 4, 3, 5, 4, 3]
    shards = shards_of_like_length(lengths, 3)
    assert sorted(index for shard in shards for index in shard) == list(range(7))
    assert sorted(sum(lengths[i] for i in shard) for shard in shards) == [8, 8, 11]
    # a long recording next to many short ones: by count, a shard would last 14
    shards = shards_of_like_length([10, *[1] * 10], 2)
    assert shards == [[0], list(range(1, 11))]


def test_shards_without_lengths_have_similar_counts():
    assert [len(shard) for shard in shards_of_like_length([0] * 7, 3)] == [3, 2, 2]
    assert shards_of_like_length([5], 3) == [[0], [], []]
