"""The page as a reader meets it, in a real browser: it opens from disk, and everything on it works."""

import pytest
from selenium.webdriver.common.keys import Keys

from aumn.records import InputError
from aumn.report.films import find_films
from tests.evaluation_reference import Found, Instance
from tests.report.cases import CLASSES, HOSTILE, VIDEOS, contents_of, write_page

pytestmark = pytest.mark.browser


def listed(page) -> list[str]:
    return page.texts(".list [role=option] b")


def watch(page, video: str = VIDEOS[0]) -> None:
    page.tab("videos")
    page.wait(lambda: page.texts(".detail h2") == [video])


def drawn(page) -> int:
    """How many different colours the timeline has."""
    return page.run(
        "const c = document.querySelector('.stage canvas'), seen = new Set();"
        "const {data} = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(data.slice(i, i + 3).join());"
        "return seen.size"
    )


def test_it_states_map_with_its_population(page, case):
    shown = [f"{100 * value:.1f}" for value in contents_of(case)["overview"]["map"]]
    assert page.texts("#map tbody tr > *")[:4] == ["mAP", *shown]
    assert page.texts("#map caption") == ["mAP in percent; 5 videos, 6 instances, 3 classes"]
    assert any("Without a detection: 1 of 5 videos." in note for note in page.texts(".notes li"))


def test_every_view_opens_by_key_and_has_something_to_show(page):
    names = ["overview", "classes", "errors", "videos", "units", "training"]
    for number, name in enumerate(names, start=1):
        page.press(str(number))
        assert page.one(f"#tab-{name}").get_attribute("aria-selected") == "true"
        assert page.one(f"#panel-{name}").is_displayed()
        assert len(page.one(f"#panel-{name}").text) > 40
        assert sum(panel.is_displayed() for panel in page.all("[role=tabpanel]")) == 1


def test_names_that_try_to_be_html_stay_names(page):
    assert page.run("return document.title") == f"case {HOSTILE}"
    page.tab("classes")
    assert HOSTILE in page.texts("#panel-classes tbody th")
    watch(page)
    assert listed(page) == sorted(VIDEOS)
    page.tab("units")
    assert HOSTILE in page.texts(".heat tbody th")
    assert not page.all("img")


def test_search_filter_and_sort_of_videos(page):
    watch(page)
    search = page.one(".side input[type=search]")
    search.send_keys("swim")
    assert listed(page) == [VIDEOS[2]]
    page.wait(lambda: page.texts(".detail h2") == [VIDEOS[2]])
    search.clear()
    search.send_keys("v1")
    assert listed(page) == ["v1"]
    search.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    assert listed(page) == sorted(VIDEOS)
    page.choose("select[aria-label=Filter]", "everything found")
    assert listed(page) == ["v1"]
    page.choose("select[aria-label=Filter]", "all videos")
    page.choose("select[aria-label=Class]", str(sorted(CLASSES).index("swim")))
    assert listed(page) == [VIDEOS[2]]
    page.choose("select[aria-label=Class]", "")
    page.choose("select[aria-label=Sort]", "most instances")
    assert listed(page)[:2] == ["v0", VIDEOS[2]]
    page.one(".side button[aria-pressed]").click()
    assert listed(page)[-1] == "v0"


def test_the_keyboard_leads_through_videos_and_time(page):
    watch(page)
    page.press("j")
    page.wait(lambda: page.texts(".detail h2") == ["v1"])
    page.press("k")
    page.wait(lambda: page.texts(".detail h2") == ["v0"])
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.texts(".readout b")[0] == "1.6 s"  # two snippets of 16 frames at 20 frames a second
    assert "snippet 2:" in page.texts(".readout")[0]
    label = page.run("return document.getElementById('cas').value")
    page.press("c")
    assert page.run("return document.getElementById('cas').value") != label
    page.press("/")
    page.run("return document.activeElement").send_keys("v1j")
    assert page.run("return document.activeElement.value") == "v1j"  # keys typed are not commands
    page.run("return document.activeElement").send_keys(Keys.ESCAPE)
    page.press("]")
    assert page.run("return document.getElementById('tiou').value") == "2"
    page.press("?")
    assert page.one("#keys").is_displayed()


def test_the_timeline_shows_what_the_tables_say_at_the_chosen_threshold(page):
    watch(page)
    chips = ".detail header .chips .kind"
    assert drawn(page) > 30
    assert page.texts(chips) == ["✓2 true positive", "D1 double detection", "W1 wrong label", "M1 missed"]
    assert page.texts(".two > :first-child tbody th") == ["jump", "jump", HOSTILE]
    assert page.texts(".two > :last-child tbody th") == ["jump", "jump", "jump", "swim"]  # best first
    assert page.texts(".two > :last-child tbody td:nth-child(4)") == [
        "✓true positive",
        "Ddouble detection",
        "✓true positive",
        "Wwrong label",
    ]
    page.choose("#tiou", "2")
    page.wait(lambda: page.texts(chips) == ["✓2 true positive", "D1 double detection", "W1 wrong label", "M1 missed"])
    watch(page)
    page.press("j")
    page.wait(lambda: page.texts(chips) == ["L1 localization", "B1 background", "M1 missed"])
    page.choose("#tiou", "0")
    page.wait(lambda: page.texts(chips) == ["✓1 true positive", "B1 background"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_can_be_switched(page, case, scheme):
    page.open(case, scheme)
    assert page.run("return document.documentElement.dataset.theme") == scheme
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    page.press("t")
    assert page.run("return document.documentElement.dataset.theme") != scheme
    assert page.run("return getComputedStyle(document.body).backgroundColor") != background


def test_an_address_leads_to_a_video_and_a_unit_to_its_snippet(page, case):
    page.open(case, fragment="#videos/v1")
    page.wait(lambda: page.texts(".detail h2") == ["v1"])
    page.tab("units")
    video, snippet, *_, similarity = contents_of(case)["units"][0]["top"][0][0]
    picture = "const c = document.querySelector('.moment canvas');"
    picture += "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((value) => value > 0)"
    page.wait(lambda: page.run(picture))
    page.one("#panel-units .chips button").click()
    page.wait(lambda: page.texts(".detail h2") == [sorted(VIDEOS)[video]])
    page.wait(lambda: f"RGB snippet {snippet}: attention " in page.texts(".readout")[0])
    assert f"unit 1 ({similarity:.2f})" in page.texts(".readout")[0]


def test_it_works_in_mlflows_frame_that_has_no_address_and_no_storage(browser, case, tmp_path):
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe sandbox="allow-scripts" src="{case.as_uri()}" width=1200 height=800></iframe>')
    browser.driver.get(outer.as_uri())
    browser.driver.switch_to.frame(browser.one("iframe"))
    try:
        browser.wait(lambda: browser.run("return document.documentElement.dataset.ready") == "yes")
        watch(browser)
        browser.press("j")
        browser.wait(lambda: browser.texts(".detail h2") == ["v1"])
        assert drawn(browser) > 30
    finally:
        browser.driver.switch_to.default_content()
    assert browser.complaints() == []


CLIP = "bbformer_tennis26"
CLICK = """
const [canvas, x, y] = arguments, box = canvas.getBoundingClientRect();
canvas.dispatchEvent(new MouseEvent('click', { bubbles: true, clientX: box.left + x, clientY: box.top + y }));
"""
PLAYING = "const film = document.querySelector('video.film'); return [film.currentTime, film.paused, film.readyState]"


@pytest.mark.shared
def test_a_detection_plays_in_its_video(browser, shared_data, tmp_path):
    found = [Found(CLIP, "tennis", 0.9, 1.0, 1.6), Found("gone", "tennis", 0.9, 0, 1)]
    (tmp_path / "clips & 'films'").mkdir()
    film = tmp_path / "clips & 'films'" / f"v_{CLIP}.MP4"
    film.symlink_to(shared_data / "clips" / f"{CLIP}.mp4")
    (film.parent / "gone.webm").touch()
    truth = [Instance(row.video, row.label, row.start_s, row.end_s + 0.1) for row in found]
    browser.open(write_page(tmp_path, truth, found, films=find_films(film.parent))[0], fragment=f"#videos/{CLIP}")
    browser.wait(lambda: browser.run(PLAYING)[2] >= 1)
    assert browser.run(PLAYING)[:2] == [0, True]
    browser.all(".detail table:last-of-type button.link")[-1].click()  # the detection's time
    browser.wait(lambda: browser.run(PLAYING)[0] > 1.0)
    browser.wait(lambda: browser.run(PLAYING)[1])  # it stops
    assert 1.6 <= browser.run(PLAYING)[0] < 2.2
    canvas = browser.one(".stage canvas")
    x = 168 + 1.3 / 20 * (canvas.size["width"] - 168)  # 1.3 s in the lane of the ground truth, of twenty seconds
    browser.run(CLICK, canvas, x, 30)
    browser.wait(lambda: not browser.run(PLAYING)[1])
    browser.press("p")
    browser.wait(lambda: browser.run(PLAYING)[1])
    assert 0.9 < browser.run(PLAYING)[0] < 2.2
    assert browser.complaints() == []
    browser.press("j")
    browser.wait(lambda: "is not there any more, or is nothing that this browser plays" in browser.one(".detail").text)


def test_a_folder_without_videos_is_told(tmp_path):
    with pytest.raises(InputError, match=r"has no video file \(\.3gp, "):
        find_films(tmp_path)
    with pytest.raises(InputError, match="is no folder: name the one that the video files lie in"):
        find_films(tmp_path / "nowhere")
