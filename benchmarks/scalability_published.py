"""Published figures of FiCo-ITR's scalability study, which our own are never mixed with.

Williams-Lekuona and Cosma, arXiv 2407.20114. Measured on an A100 of 80 GB and a Xeon Platinum
8480+, for vectors of their own; None is what did not fit into 80 GiB.
"""

SEARCH_LABEL = "published (A100/Xeon, 2048-d, their own vectors)"
MODELS_LABEL = "published (A100/Xeon, their own models and data)"

SIZES = ("1K/5K", "10K/50K", "100K/500K", "1M/5M")
"""Images and captions of their encoding and attention."""

SEARCH = (
    ("100K/500K", "FlatIP", (100, 100, 100), 1.93, 57.2),
    ("100K/500K", "HNSW", (99.2, 99.2, 99.2), 32.4, 3.09),
    ("100K/500K", "BinaryFlat, 64 bits", (10.7, 60.6, 93.6), 0.01, 8.84),
    ("100K/500K", "BinaryIVF, 64 bits", (10.5, 68.9, 89.7), 0.33, 0.70),
    ("500K/2.5M", "FlatIP", (100, 100, 100), 9.55, 1217),
    ("500K/2.5M", "HNSW", (98.3, 98.3, 98.3), 154, 18.2),
    ("500K/2.5M", "BinaryFlat, 64 bits", (8.2, 62.6, 89.3), 0.01, 182),
    ("500K/2.5M", "BinaryIVF, 64 bits", (8.3, 61.6, 86.7), 1.41, 11.1),
    ("1M/5M", "FlatIP", (100, 100, 100), 19.0, 4728),
    ("1M/5M", "HNSW", (98.0, 98.0, 98.0), 301, 39.8),
    ("1M/5M", "BinaryFlat, 64 bits", (6.9, 56.1, 84.3), 0.02, 693),
    ("1M/5M", "BinaryIVF, 64 bits", (6.9, 55.3, 82.3), 2.82, 40.2),
)
"""Queries/vectors, index, R@1/100/1000, seconds to build and to search for all queries (table 7).
Building of 0.01 s stands for "below 0.01" at the two smaller sizes."""
QUERIES = {"100K/500K": 100_000, "500K/2.5M": 500_000, "1M/5M": 1_000_000}

STORAGE = {
    "BLIP-2": (5.72, 4240.0),
    "BEiT-3": (17.2, None),
    "X-VLM": (5.72, 1127.0),
    "IMRAM": (45.75, 3258.0),
    "VSRN": (91.5, None),
    "SCAN": (45.75, 3212.0),
    "ADV, 2,048 bits": (11.71, None),
    "ADV, UCCH and DADH, 64 bits": (0.36, None),
}
"""GiB of the embeddings or codes of 1M images and 5M captions, and of the features for fusion."""

ENCODING = {
    "BLIP-2": (93.3, 908, None, None),
    "BEiT-3": (56.8, None, None, None),
    "X-VLM": (12.4, 100.9, None, None),
    "IMRAM": (50.4, 47.35, 458, None),
    "VSRN": (5.0, 19.6, 180, 1770),
    "SCAN": (6.5, 51.7, 464, None),
    "ADV, 2,048 bits": (5.9, 37.2, 447, 9854),
    "ADV, 64 bits": (5.8, 35.3, 335, 3572),
    "UCCH, 64 bits": (0.40, 4.1, 60.6, 488),
    "DADH, 64 bits": (0.53, 1.1, 6.5, 59.4),
}
"""Seconds to encode images and captions of each of `SIZES`."""

ATTENTION = {
    "BLIP-2": (2377, 24314, None, None),
    "X-VLM": (370, 3707, None, None),
    "IMRAM": (191, 12200, None, None),
    "SCAN": (17.5, 1285, None, None),
}
"""Seconds to rerank 128 candidates of every image and caption of each of `SIZES`."""
