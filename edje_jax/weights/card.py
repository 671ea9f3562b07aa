"""The README.md that a model folder carries."""

import json

from edje_jax.config import RunConfig, to_dict
from edje_jax.weights.folder import Model


def model_card(model: Model, run: RunConfig) -> str:
    """A short model card: what it is, how to use it, how it was trained."""
    c = model.config
    vision = c.backbone.vision
    store = c.num_tokens * c.joint_encoder.hidden_size * 2
    return f"""---
pipeline_tag: text-ranking
library_name: edje_jax
tags: [vision-language, reranking, image-retrieval, edje]
---

# An EDJE reranker

Scores a caption against a picture from {c.num_tokens} stored tokens of
{c.joint_encoder.hidden_size} numbers ({store:,} bytes a picture in 16 bits). Architecture: EDJE
(arXiv 2510.06820); trained with edje_jax.

```python
from edje_jax import Reranker

reranker = Reranker.from_pretrained("PATH/TO/THIS/FOLDER")
reranker.rank("two dogs", ["dogs.jpg", "boat.jpg"], top_k=1)
```

| part | shape |
|---|---|
| backbone | SigLIP, {vision.num_hidden_layers} layers x {vision.hidden_size}, \
{vision.image_size} px, patches of {vision.patch_size} px |
| adapter | {c.adapter.kind}, {c.num_tokens} tokens |
| joint encoder | BERT, {c.joint_encoder.num_hidden_layers} layers x \
{c.joint_encoder.hidden_size} |

The run's whole config:

```json
{json.dumps(to_dict(run), indent=1)}
```
"""
