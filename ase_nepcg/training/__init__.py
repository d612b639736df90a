"""Training: frames in, ``nep.txt`` out. Loss, SNES as published, and a gradient that costs about three evaluations."""
