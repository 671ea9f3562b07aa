"""Videos over HTTP: their files in parts, strips of frames, and what answers tell of them.

Covers serving/routes/videos.py.
"""

import base64
import io
import os
import tarfile
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from edje_jax.data.frames import ENDINGS
from edje_jax.index.shard_files import ImageRecord
from edje_jax.search.moments import find_moments
from edje_jax.serving.app import make_app
from edje_jax.serving.videos import MEDIA_TYPES, address, file_facts
from tests.serving.video_set import NAMES, served_videos

KEYS = {"moment", "frame", "frames", "frame_times", "strip", "video", "video_type"}


@pytest.fixture(scope="module")
def client(video_service) -> Iterator[TestClient]:
    with TestClient(make_app(video_service)) as client:
        yield client


@pytest.fixture(scope="module")
def results(client) -> dict[str, dict]:
    answer = client.post("/search", json={"query": "a red circle", "top_k": 50})
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.json()["results"]}


def test_every_ending_has_a_media_type():
    assert set(MEDIA_TYPES) == set(ENDINGS)


def test_addresses_are_quoted_below_the_servers():
    row = ImageRecord("a b/c#?.MP4", "/videos/a b/c#?.MP4", [], (0, 0))
    told = {"video": "videos/a%20b/c%23%3F.MP4", "video_type": "video/mp4"}
    assert file_facts(row) == told
    assert file_facts(row._replace(path="")) == file_facts(row._replace(path="/a.png")) == {}
    assert address("strips", "half \ud83d") == "strips/half%20%EF%BF%BD"


def test_a_file_comes_whole_or_in_parts(client, video_folder):
    data = (video_folder / "red.mp4").read_bytes()
    whole = client.get("/videos/red.mp4")
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    assert client.get("/videos/odd%20%23%3F.webm").headers["content-type"] == "video/webm"
    part = client.get("/videos/red.mp4", headers={"Range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, data[10:30])
    assert part.headers["content-range"] == f"bytes 10-29/{len(data)}"
    rest = client.get("/videos/red.mp4", headers={"Range": "bytes=-5"})
    assert (rest.status_code, rest.content) == (206, data[-5:])
    beyond = client.get("/videos/red.mp4", headers={"Range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"
    changed = {"Range": "bytes=0-9", "If-Range": '"another"'}
    assert client.get("/videos/red.mp4", headers=changed).status_code == 200


def test_head_tells_the_size_without_reading_the_file(client, video_folder, monkeypatch):
    monkeypatch.setattr("starlette.responses.FileResponse._open_file", None)
    for headers in ({}, {"Range": "bytes=0-9"}):
        head = client.head("/videos/red.mp4", headers=headers)
        size = (video_folder / "red.mp4").stat().st_size
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(size)


@pytest.mark.parametrize(
    "name", ["secret.mp4", "../red.mp4", "%2e%2e/red.mp4", "/etc/passwd", "nothing.mp4", ""]
)
def test_nothing_but_indexed_videos_leaves_the_server(client, name):
    assert client.get(f"/videos/{name}").status_code == 404
    assert client.get(f"/strips/{name}").status_code == 404


def test_a_file_that_is_gone_or_replaced_is_told(client, video_folder):
    path, away = video_folder / "gone.mp4", video_folder / "away"
    os.rename(path, away)
    try:
        for header in ({}, {"Range": "bytes=0-"}):
            gone = client.get("/videos/gone.mp4", headers=header)
            assert gone.status_code == 404
            assert gone.json()["detail"] == "the file of this video is gone since it was indexed"
        path.mkdir()
        assert client.get("/videos/gone.mp4").json()["detail"].endswith("is no file now")
        path.rmdir()
        assert client.get("/strips/gone.mp4").status_code == 200
        assert client.get("/images/gone.mp4").headers["content-type"] == "image/jpeg"
    finally:
        os.rename(away, path)


def test_a_strip_shows_all_frames_beside_each_other(client, results):
    answer = client.get("/" + results["red.mp4"]["strip"])
    assert answer.headers["content-type"] == "image/jpeg"
    strip = Image.open(io.BytesIO(answer.content))
    frames = results["red.mp4"]["frames"]
    assert strip.height == 72 and strip.width == frames * round(64 * 72 / 48)


def test_results_tell_the_moment_and_where_files_are(client, results):
    assert set(results) == NAMES
    for name, one in results.items():
        if name.endswith(".png"):
            assert not KEYS & set(one)
            continue
        assert set(one) >= KEYS
        assert one["frames"] == len(one["frame_times"]) <= 4
        assert one["frame_times"] == sorted(one["frame_times"])
        assert one["moment"] == pytest.approx(one["frame_times"][one["frame"]], abs=1e-3)
        assert client.get("/" + one["video"], headers={"Range": "bytes=0-0"}).status_code == 206
    base = client.post("/search", json={"query": "red", "top_k": 50}).json()["base"]
    told = {one["id"]: one.get("video") for one in base}
    assert told == {name: one.get("video") for name, one in results.items()}
    assert client.get("/info").json()["frames"] == 4


def test_moments_are_told_of_shown_results_alone(client, video_service, monkeypatch):
    asked = {"query": "a red circle", "top_k": 2}
    told = []
    monkeypatch.setattr(
        "edje_jax.serving.service.find_moments",
        lambda *given: told.append(given[-1]) or find_moments(*given),
    )
    seconds = client.post("/search", json=asked).json()["seconds"]
    parts = ("first_stage", "by_projection", "by_embedding", "rerank", "moments")
    assert seconds["moments"] > 0 and sum(seconds[part] for part in parts) <= seconds["total"]
    refused = client.post("/search", json={**asked, "min_score": 1}).json()
    assert refused["results"] == [] and refused["seconds"]["moments"] == 0
    assert [len(images) for images in told] == [2, 0]


def test_an_image_asks_among_videos(client, video_folder):
    data = client.get("/images/red.mp4?thumbnail=64").content
    files = {"image": "data:image/jpeg;base64," + base64.b64encode(data).decode()}
    answer = client.post("/search", json={"query": files})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"]


def test_answers_of_images_are_as_they_were(service):
    with TestClient(make_app(service)) as client:
        answer = client.post("/search", json={"query": "a red circle"}).json()
        assert set(answer["results"][0]) == {"id", "captions", "score", "similarity", "base_rank"}
        assert set(answer["base"][0]) == {"id", "similarity", "rank"}
        assert client.get("/info").json()["frames"] == 0
        refused = client.get("/strips/0.png")
        assert refused.status_code == 404 and "no frames are kept" in refused.json()["detail"]
        refused = client.get("/videos/0.png")
        assert refused.status_code == 404 and "not a video" in refused.json()["detail"]
        schemas = client.get("/openapi.json").json()
        assert set(schemas["components"]["schemas"]["FoundImage"]["properties"]) > KEYS
        assert {"206", "416"} < set(schemas["paths"]["/videos/{name}"]["get"]["responses"])


def test_a_video_in_a_tar_has_a_strip_and_no_file(video_model, video_folder, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(video_folder / "red.mp4", "a.mp4")
    service = served_videos(video_model, tmp_path / "0.tar", tmp_path / "index")
    with TestClient(make_app(service)) as client:
        (one,) = client.post("/search", json={"query": "red"}).json()["results"]
        assert set(one) & KEYS == KEYS - {"video", "video_type"}
        assert client.get("/" + one["strip"]).status_code == 200
        refused = client.get(f"/videos/{one['id']}")
        assert refused.status_code == 404 and "/strips" in refused.json()["detail"]
