"""Three columns: the last step, the one that held-out videos choose, and the best on test, which is no result."""

from tests.real.honest import columns, print_table

TESTED = {10: 0.2, 20: 0.5, 30: 0.3}
HELD_OUT = {10: 0.6, 20: 0.1, 30: 0.6}


def test_a_step_is_chosen_on_held_out_videos_alone(capsys):
    found = columns(TESTED, HELD_OUT)
    assert found == [0.3, 0.2, 0.5]
    print_table([{"row": "plain", "columns": found}, {"row": "plain", "columns": [0.3, 0.4, 0.5]}])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line == "| plain | 2 | 30.0 ± 0.0 | 30.0 ± 14.1 | 50.0 ± 0.0 | 20.0 ± 0.0 | 20.0 ± 14.1 |"
