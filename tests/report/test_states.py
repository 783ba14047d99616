"""Every view of a page in every state it is met in: no value that slipped in as text, nothing over anything else."""

import math

import pytest

from aumn.report.reporting import compare_runs
from aumn.report.runs import Training
from tests.evaluation_reference import Found, Instance
from tests.report.cases import CASE, make_run, write_page

pytestmark = pytest.mark.browser

LONG = "a very long name that somebody thought was needed to tell this class from its twenty neighbours " * 2
STEPS = range(10, 210, 10)
CURVES = Training({
    "loss": {step: 3.0 / step for step in STEPS},
    **{f"{stream}/total": {step: 2.0 / step for step in STEPS} for stream in ("rgb", "flow")},
    **{f"test/mAP/{tiou}": {100: 0.25, 200: 0.5} for tiou in ("0.5", "average")},
})  # fmt: skip
EIGHT = Training({f"stream{n}/total": {step: n + 2.0 / step for step in STEPS} for n in range(8)})
NO_NUMBERS = Training({"loss": {10: math.inf, 20: math.nan}, "rgb/total": {10: 1.0, 20: math.inf}, "lr": {5: 0}})
ONE = Instance("v0", "jump", 2, 8)
HIT = Found("v0", "jump", 0.9, 2, 8)
HITS = {"truth": [ONE], "found": [HIT]}
LONG_HITS = {"truth": [ONE._replace(label=LONG, video=LONG), ONE], "found": [HIT._replace(label=LONG, video=LONG), HIT]}
MANY = [Instance(f"v{n}", f"class {n % 20}", 1, 4 + n / 10) for n in range(40)]
MANY_HITS = [Found(row.video, row.label, 1 - n / 50, row.start_s, row.end_s + n / 20) for n, row in enumerate(MANY)]
PAGES = {
    "all there is": CASE,
    "no notes": HITS | {"training": CURVES},
    "one class, one video, one threshold": HITS | {"tious": (0.5,), "units": 1},
    "no detections": HITS | {"found": []},
    "nothing annotated in a video": HITS
    | {"found": [HIT, Found("v1", "jump", 0.5, 1, 2)], "videos": ("v0", "v1", "v2")},
    "nothing known of a video": HITS | {"found": [], "videos": ("v0", "v1"), "units": None},
    "nothing right": HITS | {"found": [HIT._replace(start_s=10, end_s=11)]},
    "many classes and units": {"truth": MANY, "found": MANY_HITS, "units": 64, "training": CURVES},
    "long names": LONG_HITS,
    "ten thresholds": HITS | {"tious": [t / 100 for t in range(50, 100, 5)]},
    "one stream": HITS | {"streams": ("clip",), "training": CURVES},
    "eight streams": HITS | {"streams": tuple(f"stream{n}" for n in range(8)), "training": EIGHT},
    "no curves": HITS | {"training": Training({}, "This run logged nothing.")},
    "curves that are not finite": HITS | {"training": NO_NUMBERS},
}
SOME, NONE = (0.2, 0.1, 0.15), (0.0, 0.0, 0.0)
RUNS = {
    "K": [({"model.units": units, "run.seed": seed}, SOME) for units in (1, 7) for seed in (0, 1)],
    "one K alone measured": [({"model.units": 1}, None), ({"model.units": 7}, SOME)],
    "ablation": [({"model.units": 1, "loss.diversity": 0}, NONE), ({"model.units": 7}, NONE)],
    "nothing differs": [({}, SOME), ({}, SOME)],
    "K, no finite mAP": [({"model.units": 1}, (math.inf, 0.1, math.inf)), ({"model.units": 7}, (math.nan, 0.1, 0.2))],
}
STRAY = """
const strays = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode, parent = text.parentElement;
  if (['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(parent.tagName) || !text.data.trim()) continue;
  const before = text.previousSibling?.nodeType === 3 ? text.previousSibling.data : ' ';
  const glued = /\\S$/.test(before) && /^\\S/.test(text.data);
  const alone = parent.matches('main, .grid, .pane');
  const slipped = /undefined|NaN|Infinity|\\[object/.test(text.data) || /^(false|true|null)$/.test(text.data.trim());
  if (glued || alone || slipped) strays.push(text.data);
}
for (const drawn of document.querySelectorAll('svg *')) {
  for (const one of drawn.attributes) if (/NaN|undefined|Infinity/.test(one.value)) strays.push(one.value);
}
return strays;
"""
OVERLAPS = """
const box = (one) => one.getBoundingClientRect(), shown = (one) => one.checkVisibility() && box(one).width > 0;
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const found = [], name = (one) => `${one.tagName} ${one.textContent.slice(0, 30)}`;
function pairs(all) {
  all.forEach((one, index) => all.slice(index + 1).forEach((other) => {
    if (meet(box(one), box(other))) found.push(`${name(one)} over ${name(other)}`);
  }));
}
for (const grid of document.querySelectorAll('.grid, .pane')) {
  const cards = [...grid.children].filter(shown);
  pairs(cards);
  cards.filter((card) => !card.matches('.card')).forEach((one) => found.push(`${name(one)} is no card of its grid`));
}
for (const svg of document.querySelectorAll('main svg')) if (shown(svg)) pairs([...svg.querySelectorAll('text')]);
for (const card of document.querySelectorAll('.card')) {
  if (shown(card) && card.scrollWidth > card.clientWidth + 1) found.push(`${name(card)} is wider than its card`);
}
const page = document.documentElement;
if (page.scrollWidth > page.clientWidth) found.push('the page scrolls sideways');
return found;
"""


@pytest.fixture(scope="module", params=[*PAGES, *RUNS])
def state(request, browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    if request.param in PAGES:
        write_page(folder, **PAGES[request.param])
    else:
        runs = [make_run(folder / f"run{number}", *run) for number, run in enumerate(RUNS[request.param])]
        compare_runs(runs, folder / "page.html", say=print)
    browser.open(folder / "page.html")
    return browser


def look(page, script: str) -> dict[str, list[str]]:
    """What a script finds in each view."""
    found = {}
    for tab in page.run("return [...document.querySelectorAll('[role=tab]')].map((one) => one.id)"):
        page.one(f"#{tab}").click()
        if tab == "tab-videos":
            page.wait(lambda: page.all(".detail h2"))
        found[tab] = page.run(script)
    assert found
    return {tab: problems for tab, problems in found.items() if problems}


def test_no_value_slips_in_as_text_and_nothing_lies_over_anything_else(state):
    assert look(state, STRAY) == look(state, OVERLAPS) == {}
    assert state.complaints() == []


def test_a_narrow_window_holds_it_all(state):
    state.driver.set_window_size(700, 1000)
    try:
        assert look(state, OVERLAPS) == {}
    finally:
        state.driver.set_window_size(1440, 1000)
