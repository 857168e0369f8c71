"""Share of a split's rows whose clips a Common Voice release has.

Later releases lack clips that their speakers withdrew, and a partly unpacked one lacks
more. What is missing is counted, listed in a file and refused below a share.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

LISTING = "missing_clips.tsv"
MIN_SHARE = 0.9
_HEADER = "split\tclip\treason\tdetail\n"


class Share(NamedTuple):
    """Rows of a split, and those of them that are missing in the release."""

    split: str
    rows: int
    missing: list[Dropped]

    @property
    def found(self) -> int:
        """Number of rows with a clip."""
        return self.rows - len(self.missing)

    @property
    def share(self) -> float:
        """Share of rows with a clip, 0 to 1."""
        return self.found / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        percent = 1000 * self.found // max(self.rows, 1) / 10  # 99.97 is not 100 %
        found = f"{self.found:,} of {self.rows:,} rows found ({percent:.1f} %)"
        return f"{self.split}: {found}"


def check_shares(
    release: str | Path, output_dir: str | Path, shares: list[Share], min_share: float
) -> list[str]:
    """List what is missing in ``missing_clips.tsv`` and check how much it is.

    Args:
        release: folder of the release, for the message.
        output_dir: folder of the data dirs, which gets the list.
        shares: one per split.
        min_share: least share of each split's rows, 0 to 1.

    Returns:
        One line about each split.

    Raises:
        UserError: a split has a smaller share, or ``min_share`` is not a share; or the
            list would replace a file of the user.
    """
    check_min_share(min_share)
    path = Path(output_dir) / LISTING
    _write_listing(path, shares)
    for one in shares:
        if one.share < min_share:
            raise UserError(
                f"{release}: {one}, fewer than --min_share {min_share:g}; use a "
                f"release that has more, or a smaller --min_share; {path} lists the "
                "missing clips"
            )
    lines = [str(one) for one in shares]
    if any(one.missing for one in shares):
        lines.append(f"{path} lists the missing clips; they make scores incomparable")
    return lines


def check_min_share(min_share: float) -> None:
    """Raise UserError if a least share is not a number from 0 to 1."""
    if not 0 <= min_share <= 1:
        raise UserError(f"--min_share {min_share:g}: give a share from 0 to 1")


def _write_listing(path: Path, shares: Iterable[Share]) -> None:
    rows = [
        (one.split, entry.id, entry.reason, entry.detail)
        for one in shares
        for entry in one.missing
    ]
    if os.path.lexists(path):
        with open(path, encoding="utf-8", errors="replace") as stream:
            if stream.readline() != _HEADER:
                raise UserError(
                    f"{path}: not written by this project, so it is not replaced; move "
                    "it away"
                )
        if not rows:
            path.unlink()
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as stream:
        stream.write(_HEADER)
        for row in rows:
            stream.write("\t".join(" ".join(field.split()) for field in row) + "\n")
