"""The `vatex:` source: the annotations of VATEX (Wang et al., ICCV 2019), one JSON list a split.

    [{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["a man ...", ...], "chCap": [...]}, ...]

A video has ten captions in English and ten in Chinese. Its id is the name of the clip: YouTube's id
and the seconds at which the clip starts and ends.
"""

from edje_jax.data.sources.texts import listed
from edje_jax.data.sources.video_list import VideoEntry, VideoList, objects, read_annotations

LANGUAGES = {"en": "enCap", "zh": "chCap"}
"""Field of the captions in each language."""
_EXAMPLE = '[{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["a man"], "chCap": ["..."]}]'


class Vatex(VideoList):
    """Videos with their captions in one language, "en" (the default) or "zh".

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such language, or not such a file; see `VideoList` too.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file: str, language: str = "", image_root: str | None = None):
        language = language or "en"
        if language not in LANGUAGES:
            raise ValueError(f'{file}: no captions in "{language}"; there are #en and #zh')
        file, value = read_annotations(
            file, "vatex", _EXAMPLE, lambda value: bool(objects(value, "videoID"))
        )
        field = LANGUAGES[language]
        super().__init__(
            file,
            [
                VideoEntry(f"{file}: entry {i}", entry.get("videoID"), listed(entry.get(field)))
                for i, entry in enumerate(objects(value, "videoID"))
            ],
            image_root,
        )
