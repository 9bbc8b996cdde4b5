"""The grids of patches that a layer has had, for calls that say nothing of theirs."""

from __future__ import annotations

from typing import Optional


Grid = tuple[int, int]


class SeenGrids:
    """Which grids each number of tokens has been.

    A call within a pass of the model knows its grid. A layer that is run on its own, or that torch's own checkpointing
    around it runs again, knows only its tokens.

    Args:
        has_patches: whether the model's tokens are patches.
    """

    def __init__(self, has_patches: bool) -> None:
        self._has_patches = has_patches
        self._seen: dict[int, set[Grid]] = {}

    def of(self, num_tokens: int, grid: Optional[Grid]) -> Grid:
        """Return `grid`, which is remembered; for None, that of earlier calls with as many tokens.

        Raises:
            RuntimeError: there were none, or different ones.
        """
        if not self._has_patches:
            return (1, num_tokens)
        seen = self._seen.setdefault(num_tokens, set())
        if grid is not None:
            seen.add(grid)
            return grid
        if len(seen) != 1:
            grids = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(seen)) or "none"
            raise RuntimeError(
                f"This encoder layer was run outside of a pass of its model, so which grid its {num_tokens} tokens form is "
                f"not known; passes with as many tokens had {grids}. Run the whole model; for gradient checkpointing call "
                "its `gradient_checkpointing_enable()`."
            )
        return next(iter(seen))
