"""Train, dev and test sets of data that has none: deterministic, by speaker.

The order of the groups (speakers, recordings or texts) is that of the SHA-256 of their
names, so that the same input always gives the same sets.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Share of the speech that dev and test each get by default, and its maximum.
DEFAULT_SHARE, DEFAULT_SECONDS = 0.1, 7200.0
_TOO_LARGE = 1.5  # times the wanted size, of a set that a group is not added to
_LEAST_TRAIN = 0.5  # of the share that train should have


@dataclass(frozen=True)
class Member:
    """An utterance to be put into a set.

    Attributes:
        split: given set, or empty.
        speaker: empty if unknown.
        recording: shared by the segments of a recording; empty for a whole file.
        text: normalised transcript.
        seconds: length.
    """

    split: str
    speaker: str
    recording: str
    text: str
    seconds: float


def split_members(
    members: Sequence[Member], dev_share: float | None, test_share: float | None
) -> tuple[list[str], str]:
    """Return the set of each utterance, and a description of the rule.

    Given sets are kept; a set that is not given is taken from train. Utterances of one
    speaker stay together; of unknown speakers, those of one recording or with the same
    text. If that leaves less than half of the wanted speech for train, utterances with
    the same text stay together instead.

    Args:
        dev_share, test_share: share of the speech; None takes 10 %, at most two hours.

    Raises:
        ValueError: there are too few utterances for three sets.
    """
    given = {member.split for member in members} - {""}
    sets = [member.split or "train" for member in members]
    shares = {"test": test_share, "dev": dev_share}
    total = sum(member.seconds for member in members)
    wanted = {}
    for name, share in shares.items():
        if name in given or share == 0:
            continue
        default = min(DEFAULT_SHARE * total, DEFAULT_SECONDS)
        wanted[name] = default if share is None else share * total
    pool = [i for i, name in enumerate(sets) if name == "train"]
    if not wanted:
        return sets, "sets as given"
    rule = (
        "sets as given, " + " and ".join(sorted(wanted)) + " from train, "
        if given
        else ""
    )
    has_speakers = all(members[i].speaker for i in pool)
    by_group = [_group(members[i]) for i in pool]
    description = rule + (
        "no speaker is in two sets"
        if has_speakers
        else "speakers unknown: no recording and no text is in two sets"
    )
    found = _assign(_sizes(members, pool, by_group), wanted)
    if found is None:
        by_group = ["text:" + members[i].text for i in pool]
        found = _assign(_sizes(members, pool, by_group), wanted)
        description = rule + (
            "too few speakers or recordings to separate them, so sets share them; "
            "scores are of known voices"
        )
    if found is None:
        raise ValueError("too few different utterances for train, dev and test")
    for i, group in zip(pool, by_group, strict=True):
        sets[i] = found[group]
    return sets, description


def _group(member: Member) -> str:
    if member.speaker:
        return "speaker:" + member.speaker
    if member.recording:
        return "recording:" + member.recording
    return "text:" + member.text


def _sizes(
    members: Sequence[Member], pool: Sequence[int], groups: Sequence[str]
) -> dict[str, float]:
    """Return the seconds of speech of each group."""
    sizes: dict[str, float] = defaultdict(float)
    for i, group in zip(pool, groups, strict=True):
        sizes[group] += members[i].seconds
    return dict(sizes)


def _assign(
    sizes: Mapping[str, float], wanted: Mapping[str, float]
) -> dict[str, str] | None:
    """Return the set of each group; None if too little would be left for train.

    Args:
        sizes: seconds of each group.
        wanted: seconds of each set other than train.
    """
    if len(sizes) <= len(wanted):
        return None
    order = sorted(sizes, key=lambda g: hashlib.sha256(g.encode("utf-8")).digest())
    found: dict[str, str] = {}
    for name, target in wanted.items():
        filled = 0.0
        for group in order:
            fits = filled + sizes[group] <= _TOO_LARGE * target
            if group not in found and filled < target and fits:
                found[group] = name
                filled += sizes[group]
        if not filled:
            free = [group for group in order if group not in found]
            found[min(free, key=lambda group: (sizes[group], group))] = name
    total = sum(sizes.values())
    train = total - sum(sizes[group] for group in found)
    if train < _LEAST_TRAIN * (total - sum(wanted.values())):
        return None
    return {group: found.get(group, "train") for group in order}
