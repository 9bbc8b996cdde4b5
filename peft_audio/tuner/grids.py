"""The grids of patches that a layer has had, for calls that say nothing of theirs."""

from __future__ import annotations


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

    def note(self, num_tokens: int, grid: Grid) -> None:
        """Remember the grid of a call within a pass of the model."""
        self._seen.setdefault(num_tokens, set()).add(grid)

    def of(self, num_tokens: int) -> Grid:
        """Return the grid that calls with as many tokens had.

        Raises:
            RuntimeError: there were none, or of different grids.
        """
        if not self._has_patches:
            return (1, num_tokens)
        seen = self._seen.get(num_tokens, set())
        if len(seen) != 1:
            grids = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(seen)) or "none"
            raise RuntimeError(
                f"This encoder layer was run outside of a pass of its model, so which grid its {num_tokens} tokens form is "
                f"not known; passes with as many tokens had {grids}. Run the whole model; for gradient checkpointing call "
                "its `gradient_checkpointing_enable()`."
            )
        return next(iter(seen))
