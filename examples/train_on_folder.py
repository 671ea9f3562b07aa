"""Train a reranker on a folder of images, each with a text file beside it that describes it.

    python examples/train_on_folder.py photos/ --steps 1000

`photos/dog.jpg` is described by `photos/dog.txt`, one caption on each line. Options after the
folder are those of `edje train tiny --help`.
"""

import json
import sys
from pathlib import Path

from edje_jax.cli.edje import main as edje

# The dual encoder that images and captions are read by; it stays as it is. For photographs, take
# one from the Hugging Face hub, such as google/siglip2-base-patch16-256.
BACKBONE = "shapes-backbone"


def main(folder: str, *options: str) -> None:
    """Write the list of captions that training reads, then train."""
    entries = []
    for text in sorted(Path(folder).glob("*.txt")):
        (image,) = (path for path in text.parent.glob(f"{text.stem}.*") if path != text)
        captions = text.read_text(encoding="utf-8").splitlines()
        entries.append({"image": image.name, "caption": captions})
    captions_file = Path(folder) / "captions.json"
    captions_file.write_text(json.dumps(entries), encoding="utf-8")

    # A run that was stopped goes on with the same command.
    data = ["--data.train", f"blip:{captions_file}", "--model.backbone", BACKBONE]
    edje(["train", "tiny", *data, "--workdir", "runs/photos", *options])
    print("trained: use it with Reranker.from_pretrained('runs/photos')")


if __name__ == "__main__":
    main(*sys.argv[1:])
