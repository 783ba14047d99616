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


def test_a_loop_of_equal_requests_settles_on_one_block() -> None:
    buffers = Buffers()
    assert len({buffers.empty((50, 7), torch.float32).data_ptr() for _ in range(20)}) == 1


def test_smaller_blocks_make_way_for_larger_ones() -> None:
    buffers = Buffers()
    for size in (2, 9, 4, 9, 0, 7):
        tensor = buffers.empty((size, 3), torch.float64)
        assert tensor.shape == (size, 3)
        assert tensor.dtype == torch.float64
        tensor.fill_(size)
        del tensor


def test_bfloat16_which_numpy_lacks() -> None:
    tensor = Buffers().empty((2, 5), torch.bfloat16).fill_(1.5)
    assert tensor.tolist() == [[1.5] * 5] * 2
