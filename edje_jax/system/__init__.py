"""Files, cache folders and memory of the machine that a program runs on."""
