"""Routes of `edje serve`; each file holds a group of them."""
