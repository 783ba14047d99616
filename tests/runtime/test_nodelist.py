"""SLURM's lists of nodes: what `scontrol show hostnames` would say, without it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aumn.records import InputError
from aumn.runtime.nodelist import node_names

FROM_SCONTROL = {
    "n1": ["n1"],
    "n[1-2],x3": ["n1", "n2", "x3"],
    "n[3,1]": ["n3", "n1"],
    "n[08-11,3]": ["n08", "n09", "n10", "n11", "n3"],
    "n[9-11]": ["n9", "n10", "n11"],
    "rack[1-2]n[01-03]": ["rack1n01", "rack1n02", "rack1n03", "rack2n01", "rack2n02", "rack2n03"],
}  # as SLURM 22.05 answers


@pytest.mark.parametrize("text", FROM_SCONTROL)
def test_names_are_those_that_slurm_says(text):
    assert node_names(text) == FROM_SCONTROL[text]


@pytest.mark.parametrize("text", ["", "n[", "n[1-", "n[]", "n[a]", "n]1", "n[1-2", "a,,b", "n[1[2]]"])
def test_what_is_no_list_is_refused_with_its_text(text):
    with pytest.raises(InputError, match=r"SLURM_JOB_NODELIST=.* must be names of nodes such as") as refused:
        node_names(text)
    assert repr(text) in str(refused.value)


prefixes = st.from_regex(r"[a-z]([a-z0-9.-]{0,6}[a-z])?", fullmatch=True)
ranges = st.tuples(st.integers(0, 1200), st.integers(0, 30), st.integers(1, 5))


@given(st.lists(st.tuples(prefixes, st.lists(ranges, min_size=0, max_size=3)), min_size=1, max_size=4))
def test_any_list_of_ranges_names_every_node_in_order(groups):
    """Compressed as SLURM does, from the names counted one by one."""
    texts, names = [], []
    for prefix, found in groups:
        inside = []
        for first, more, width in found:
            inside.append(f"{first:0{width}}-{first + more:0{width}}" if more else f"{first:0{width}}")
            names += [prefix + str(number).zfill(width) for number in range(first, first + more + 1)]
        texts.append(f"{prefix}[{','.join(inside)}]" if inside else prefix)
        names += [] if inside else [prefix]
    assert node_names(",".join(texts)) == names
