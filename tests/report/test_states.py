"""Every view of a page in every state it is met in: no value that slipped in as text, nothing over anything else."""

import pytest

from tests.report.states import STATES

pytestmark = pytest.mark.browser

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


@pytest.fixture(scope="module", params=STATES)
def state(request, browser, tmp_path_factory):
    browser.open(STATES[request.param](tmp_path_factory.mktemp("state")))
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
