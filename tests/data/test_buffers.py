"""Memory for batches: shared with nobody while it is in use, and used again afterwards."""

import torch

from aumn.data.buffers import Buffers


def test_tensors_in_use_share_no_memory() -> None:
    buffers = Buffers()
    tensors = [buffers.empty((3, number, 2), torch.float32).fill_(number) for number in range(1, 6)]
    views = [tensor[1:] for tensor in tensors]
    del tensors
    buffers.empty((3, 5, 2), torch.float32).fill_(-1)
    assert [view.unique().tolist() for view in views] == [[number] for number in range(1, 6)]


def test_memory_comes_back_with_the_last_tensor_over_it() -> None:
    buffers = Buffers()
    first = buffers.empty((4, 3), torch.float32)
    place, view = first.data_ptr(), first[2]
    del first
    assert buffers.empty((4, 3), torch.float32).data_ptr() != place
    del view
    places = {buffers.empty((4, 3), torch.float32).data_ptr() for _ in range(3)}
    assert place in places


def test_blocks_of_any_size_and_dtype_one_after_the_other() -> None:
    buffers = Buffers()
    for size in (2, 9, 4, 9, 0, 7):
        for dtype in (torch.float64, torch.bfloat16):  # numpy has no bfloat16
            tensor = buffers.empty((size, 3), dtype).fill_(size)
            assert tensor.dtype == dtype
            assert tensor.tolist() == [[size] * 3] * size
            del tensor
