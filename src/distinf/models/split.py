"""How a model is split over the ranks of a process group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Split:
    """The parts of fields and spectra that the ranks of a group own.

    A dimension is split into contiguous parts of nearly equal length, in the order of the ranks,
    as `torch_harmonics.distributed` does. Its azimuth group is the group, its polar group is one
    rank: so ranks own columns of a field and orders of a spectrum.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        At least two ranks, this one among them.

    Attributes
    ----------
    size, rank : int
        Number of ranks, and the number of this one among them.

    Raises
    ------
    ValueError
        If this process already uses `torch_harmonics.distributed`, which knows one group per
        process, with another group that has not been destroyed.
    """

    def __init__(self, group: ProcessGroup) -> None:
        import torch.distributed as dist
        from torch_harmonics import distributed

        known = (distributed.polar_group(), distributed.azimuth_group())
        if known != (None, group) and any(map(_exists, known)):
            raise ValueError(
                "torch_harmonics.distributed is already initialized with other process groups: "
                "all models of a process that span ranks must span the same group"
            )
        distributed.init(None, group)
        self.size: int = dist.get_world_size(group)
        self.rank: int = dist.get_rank(group)

    def check(self, lmax: int) -> None:
        """Raise `ValueError` if so few spherical harmonic degrees do not give each rank a part."""
        if lmax < 2 * self.size:
            raise ValueError(
                f"lmax={lmax} is too small for a group of {self.size} ranks: "
                f"it must be at least {2 * self.size}"
            )

    def lengths(self, count: int) -> list[int]:
        """Lengths of the parts of a dimension of `count` elements."""
        from torch_harmonics.distributed import compute_split_shapes

        lengths: list[int] = compute_split_shapes(count, self.size)
        return lengths

    def part(self, count: int) -> slice:
        """Elements that this rank owns of a dimension of `count` elements."""
        lengths = self.lengths(count)
        start = sum(lengths[: self.rank])
        return slice(start, start + lengths[self.rank])

    def transpose(self, x: torch.Tensor, whole: int, split: int, count: int) -> torch.Tensor:
        """Split the dimension `whole`, and complete the dimension `split`, of `count` elements.

        The dimensions are counted from the end. Every rank of the group must call it.
        """
        from torch_harmonics.distributed import distributed_transpose_azimuth

        result: torch.Tensor = distributed_transpose_azimuth(x, (whole, split), self.lengths(count))
        return result

    def gather(self, fields: torch.Tensor, nlon: int) -> torch.Tensor:
        """Complete the columns of fields (..., row, own columns) on every rank."""
        whole = fields.new_empty(*fields.shape[:-1], nlon)
        flat = zip(fields.flatten(0, -3), whole.flatten(0, -3), strict=True)
        # One at a time: an exchange takes five times the memory of what it gives.
        for field, result in flat:
            copies = field.expand(self.size, *field.shape)  # one for each rank
            result.copy_(self.transpose(copies, -3, -1, nlon)[0])
        return whole


def split_over(group: ProcessGroup | None) -> Split | None:
    """Return how to split a model over a group; None for a model of one rank.

    Raises `ValueError` if this rank is not in the group, or as `Split` does.
    """
    if group is None:
        return None
    import torch.distributed as dist

    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError("this rank is not in the process group of the model")
    return Split(group) if size > 1 else None


def _exists(group: ProcessGroup | None) -> bool:
    import torch.distributed as dist

    if group is None:
        return False
    try:
        dist.get_process_group_ranks(group)
    except (KeyError, ValueError):  # destroyed
        return False
    return True
