"""The routes of `edje serve`, a file each for what belongs together."""
