"""Use a trained model in PyTorch, without JAX.

    python examples/convert_to_pytorch.py shapes-demo converted/ photos/1.png "a red star"

The folder that is written has everything in it: weights, backbone, tokenizer, and
`modeling_edje.py`, one file that imports torch and transformers alone.
"""

import sys
from pathlib import Path

from edje_jax.cli.edje import main as edje


def main(model: str, folder: str, image: str, text: str) -> None:
    """Write the folder, open it with transformers, and score one image against one text."""
    if not Path(folder).exists():
        edje(["convert", model, folder, "--to", "edje"])

    # From here on nothing of edje_jax is used: copy the folder to wherever PyTorch is.
    import torch
    from transformers import AutoModel

    network = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        pixels = network.preprocess([image])
        tokens = network.encode_image(pixels)  # Once for every image: keep them
        logits = network.score(**network.tokenize([text]), tokens=tokens)
        cosines = (network.embed_text([text]) * network.embed_image(pixels)).sum(1)
    print(f"match logit {logits.item():.3f}")
    print(f"probability {network.probability(network.mixed(logits, cosines)).item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
