"""The search page in a real browser."""

import json
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator

import pytest
import uvicorn

from edje_jax import Query
from edje_jax.serving.app import make_app
from tests.serving.browser import KEYS, Browser, free_port, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver",
    ),
]
TILES = "document.querySelectorAll('#results .tile').length"
IDS_OF = "[...document.querySelectorAll('#results .tile')].map(one => one.dataset.id)"
UNPLAYED = {"old.avi", "gone.mp4"}
"""A container, and a codec, that Chromium does not know."""
IDS = f"return {IDS_OF}"


class Server:
    """An application on a port of its own."""

    def __init__(self, app):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        until(lambda: self._server.started, "the server started")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module")
def server(service) -> Iterator[Server]:
    running = Server(make_app(service))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    running = Browser("--window-size=1300,900")
    yield running
    running.close()


def test_a_search_shows_both_orders_and_how_far_each_moved(browser, server, service):
    browser.open(server.address)
    browser.until("document.querySelectorAll('.chips button').length > 0")
    assert browser.run("return document.activeElement.id") == "q"
    browser.keys("a red circle" + KEYS["Enter"])
    browser.until(TILES)
    count = min(24, len(service.index))
    expected = service.reranker.search(service.index, ["a red circle"], k=100, top_k=count)[0]
    assert browser.run(IDS) == [one["id"] for one in expected]
    moves = browser.run(
        "return [...document.querySelectorAll('#results .move')].map(one => one.textContent)"
    )
    for place, (move, one) in enumerate(zip(moves, expected, strict=True), start=1):
        by = one["base_rank"] - place
        assert move == (f"↑{by}" if by > 0 else f"↓{-by}" if by < 0 else "=")
    base = "[...document.querySelectorAll('.base .tile')].map(one => one.dataset.id)"
    order = sorted(expected, key=lambda one: one["base_rank"])
    assert browser.run(f"return {base}") == [one["id"] for one in order]
    browser.until("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    told = browser.run("return document.getElementById('bar').textContent")
    for part in ("first stage", "gather", "rerank", "total"):
        assert part in told
    assert "q=a%20red%20circle" in browser.run("return location.search")
    # Nothing comes from anywhere else.
    names = browser.run("return performance.getEntriesByType('resource').map(one => one.name)")
    assert names and all(name.startswith(server.address) for name in names)


def test_the_keyboard_does_all(browser, server):
    browser.open(f"{server.address}/?q=green&k=10")
    browser.until(TILES)
    browser.run("document.activeElement.blur()")
    browser.keys("/")
    assert browser.run("return document.activeElement.id") == "q"
    focused = (
        "return [...document.querySelectorAll('#results .tile')].indexOf(document.activeElement)"
    )
    browser.keys(KEYS["Down"])
    assert browser.run(focused) == 0
    browser.keys(KEYS["Right"] * 2)
    assert browser.run(focused) == 2
    browser.keys(KEYS["Enter"])
    browser.until("document.querySelectorAll('#dialog ol button').length > 2")
    assert browser.run("return document.querySelector('#dialog').open")
    browser.keys(KEYS["Escape"])
    browser.until("!document.querySelector('#dialog').open")
    browser.keys(KEYS["Up"])
    assert browser.run("return document.activeElement.id") == "q"


def test_an_image_finds_captions_and_a_caption_searches(browser, server):
    browser.open(f"{server.address}/?q=green")
    browser.until(TILES)
    browser.click("#results li:nth-child(2) .tile")
    browser.until("document.querySelectorAll('#dialog ol button').length == 10")
    caption = browser.run("return document.querySelector('#dialog ol button span').firstChild.data")
    browser.click("#dialog ol button")
    browser.until("!document.querySelector('#dialog').open")
    assert browser.run("return document.getElementById('q').value") == caption
    browser.until(f"document.title.startsWith({caption[:10]!r})")
    browser.run("history.back()")
    browser.until("document.getElementById('q').value == 'green'")


def test_words_from_the_data_are_never_markup(browser, server):
    browser.open(f"{server.address}/?q=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E")
    browser.until(TILES)
    assert browser.run("return document.querySelectorAll('[onerror]').length") == 0
    browser.run("open_ = [...document.querySelectorAll('.tile')]"
                ".find(one => one.dataset.id.startsWith('odd')).click()")  # fmt: skip
    browser.until("document.querySelector('#dialog .id').textContent == 'odd & <name> #?%.png'")
    browser.until("document.querySelector('#dialog img').naturalWidth > 0")


def test_nothing_is_wider_than_a_phone(browser, server):
    browser.size(520, 900)  # The narrowest that a window of headless Chromium gets
    browser.open(f"{server.address}/?q=red")
    browser.until(TILES)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    columns = "return getComputedStyle(document.querySelector('.grid')).gridTemplateColumns"
    assert len(browser.run(columns).split()) == 2
    browser.size(1300, 900)
    assert len(browser.run(columns).split()) > 3


def test_dark_where_the_system_is(server):
    shades = []
    for arguments in ((), ("--force-dark-mode",)):
        browser = Browser(*arguments)
        try:
            browser.open(server.address)
            shade = browser.run("return getComputedStyle(document.body).backgroundColor")
            shades.append(int(shade.split("(")[1].split(",")[0]))
        finally:
            browser.close()
    assert shades[0] > 200 > 60 > shades[1]


def test_errors_are_told_and_can_be_tried_again(browser, service):
    server = Server(make_app(service))
    browser.open(f"{server.address}/?q=red")
    browser.until(TILES)
    server.stop()
    browser.run(
        "document.getElementById('q').value = 'blue'; document.querySelector('.go').click()"
    )
    browser.until("document.querySelector('.error h3')")
    told = browser.run("return document.querySelector('.error').textContent")
    assert "The server does not answer" in told and "Try again" in told


def test_a_key_is_asked_for_once(browser, service):
    server = Server(make_app(service, api_key="sesame"))
    try:
        browser.open(f"{server.address}/healthz")
        browser.run("sessionStorage.setItem('edje-key', 'sesame')")
        browser.open(f"{server.address}/?q=red")
        browser.until(TILES)
        browser.until("[...document.images].every(one => one.naturalWidth > 0)")
    finally:
        server.stop()


def test_below_the_path_of_a_proxy(browser, service):
    """Which leaves its path in the address, as here, or takes it away: the page asks below it."""
    server = Server(make_app(service, root_path="/find"))
    try:
        browser.open(f"{server.address}/find/?q=red")
        browser.until(TILES)
        browser.until("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        names = browser.run("return performance.getEntriesByType('resource').map(one => one.name)")
        assert names and all(name.startswith(f"{server.address}/find/") for name in names)
        browser.run("document.getElementById('q').value = ''")
        browser.run("document.querySelector('.go').click()")
        browser.until("document.querySelectorAll('.chips button').length > 0")
        assert browser.run("return location.pathname + location.search") == "/find/"
    finally:
        server.stop()


def test_nothing_matches_is_an_answer(browser, server):
    browser.open(server.address + "/?q=a+red+circle&k=10&min_score=0.9999")
    browser.until("document.querySelector('.state h3')?.textContent === 'Nothing matches'")
    assert browser.run("return document.getElementById('least').value") == "0.9999"
    browser.run("document.querySelector('.chips button').click()")
    browser.until(TILES)
    assert browser.run("return location.search") == "?q=a%20red%20circle&k=10"


def test_what_images_must_not_show_is_asked_and_kept_in_the_address(browser, server, service):
    browser.open(f"{server.address}/?q=green&not=a+circle&k=100")
    browser.until(TILES)
    query = Query("green", ["a circle"])
    expected = service.reranker.search(service.index, [query], k=100, top_k=24)[0]
    assert browser.run(IDS) == [one["id"] for one in expected]
    browser.run("document.getElementById('no').focus()")
    browser.keys("a star" + KEYS["Enter"])
    browser.until("location.search.includes('not=a%20circlea%20star')")


def test_more_like_an_image_leaves_it_out(browser, server, service):
    browser.open(f"{server.address}/?q=green&k=100")
    browser.until(TILES)
    first = browser.run(IDS)[0]
    browser.click("#results li .like")
    browser.until("location.search.includes('like=')")
    browser.until(f"document.querySelector('#asked img') && !({IDS_OF}).includes({first!r})")
    expected = service.reranker.search(service.index, [Query(like=first)], k=100, top_k=24)[0]
    assert browser.run(f"return {IDS_OF}") == [one["id"] for one in expected]
    assert browser.run("return document.title") == f"Like {first} · edje"
    browser.run("history.back()")
    browser.until(
        "document.getElementById('q').value == 'green' && document.getElementById('asked').hidden"
    )


def test_an_image_that_is_pasted_is_searched_for(browser, server, service):
    browser.open(server.address)
    browser.until("document.querySelectorAll('.chips button').length > 0")
    browser.run(
        """fetch('images/3.png').then(answer => answer.blob()).then(blob => {
             const data = new DataTransfer();
             data.items.add(new File([blob], 'mine.png', { type: 'image/png' }));
             document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));
           })"""
    )
    browser.until(TILES)
    assert browser.run(IDS)[0] == "3.png"
    assert "mine.png" in browser.run("return document.getElementById('asked').textContent")
    browser.click("#asked button")
    browser.until("document.getElementById('asked').hidden && document.querySelector('.chips')")


def test_videos_play_in_place_from_the_moment(browser, video_service):
    server = Server(make_app(video_service))
    try:
        browser.open(f"{server.address}/?q=a+red+circle")
        browser.until(TILES)
        asked = {"query": "a red circle", "k": 100, "top_k": 24}
        asking = urllib.request.Request(f"{server.address}/search", json.dumps(asked).encode())
        with urllib.request.urlopen(asking) as answer:
            results = json.load(answer)["results"]
        assert browser.run(IDS) == [one["id"] for one in results]
        for place, one in enumerate(results):
            check_a_result(browser, place, one)
        browser.size(520, 900)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        browser.size(1300, 900)
        with urllib.request.urlopen(f"{server.address}/metrics") as answer:
            counted = answer.read().decode()
        assert re.search(r'route="/videos/{name:?.*}".*status="206"', counted)
    finally:
        server.stop()


def test_with_a_key_whole_videos_are_fetched_and_let_go(browser, video_service, video_folder):
    server = Server(make_app(video_service, api_key="sesame"))
    path, away = video_folder / "turned.mp4", video_folder / "away.mp4"
    try:
        browser.open(f"{server.address}/healthz")
        browser.run("sessionStorage.setItem('edje-key', 'sesame')")
        browser.open(f"{server.address}/?q=a+red+circle")
        browser.until(TILES)
        ids = browser.run(IDS)
        browser.click(f"#results > li:nth-child({ids.index('red.mp4') + 1}) .tile")
        browser.until("document.querySelector('.player video').currentTime > 0")
        source = browser.run("return document.querySelector('.player video').src")
        assert source.startswith("blob:")
        browser.keys(KEYS["Escape"])
        browser.run(f"fetch({source!r}).then(() => left = 'there', () => left = 'gone'); left = ''")
        browser.until("left")
        assert browser.run("return left") == "gone"
        path.rename(away)  # Another one, as the browser may have kept the first
        browser.click(f"#results > li:nth-child({ids.index('turned.mp4') + 1}) .tile")
        browser.until("document.querySelector('.player .told')")
        told = browser.run("return document.querySelector('.player').innerText")
        assert "the file of this video is gone since it was indexed" in told
        browser.keys(KEYS["Escape"])
        browser.until("!document.querySelector('.player')")
    finally:
        if away.exists():
            away.rename(path)
        server.stop()


def check_a_result(browser, place: int, one: dict) -> None:
    """Look at a result's strip, play it from its moment and from a frame, and stop it."""
    item = f"document.querySelectorAll('#results > li')[{place}]"
    if "video" not in one:
        assert browser.run(f"return {item}.querySelectorAll('.frame').length") == 0
        return
    browser.run(f"{item}.scrollIntoView()")
    frames = f"[...{item}.querySelectorAll('.frame img')]"
    browser.until(f"{frames}.every(one => one.naturalHeight === 72)")
    assert browser.run(f"return {frames}.length") == one["frames"]
    marked = f"[...{item}.querySelectorAll('.frame')].map(one => one.className)"
    best = [number for number, name in enumerate(browser.run(f"return {marked}")) if "best" in name]
    assert best == [one["frame"]]
    told = browser.run(f"return {item}.querySelector('.best').getAttribute('aria-label')")
    assert told.startswith(f"Play from {one['moment']:.1f} s") and "matches most" in told
    browser.click(f"#results > li:nth-child({place + 1}) .tile")
    if one["id"] in UNPLAYED:
        browser.until(f"{item}.querySelector('.told a')")
        assert "does not play this file" in browser.run(f"return {item}.innerText")
        assert browser.run(f"return {item}.querySelector('.told a').href").endswith(one["video"])
    else:
        video = f"{item}.querySelector('video')"
        browser.until(f"{video}.currentTime > {one['moment']}")
        browser.until(f"{video}.paused === false || {video}.ended")
        assert browser.run(f"return {video}.error") is None
        browser.run(f"{item}.querySelector('.frame').click()")
        browser.until(f"!{video}.paused && {video}.currentTime < {one['frame_times'][0] + 0.5}")
        assert browser.run(f"return {video}.muted && {video}.controls")
        assert one["id"] in browser.run(f"return {video}.ariaLabel")
    browser.keys(KEYS["Escape"])
    browser.until("!document.querySelector('.player')")
    assert browser.run(f"return document.activeElement === {item}.querySelector('.tile')")
