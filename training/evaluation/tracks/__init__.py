"""How long and how true tracks are: footage with known motion, front-ends on it, and what their tracks are worth.

- `footage`: recorded and rendered image sequences, and where a point of one frame truly is in another.
- `stress`: the same footage in the dark, blurred, shaken, hidden.
- `front_ends`: extractor and tracker together; ours and the classic ones.
- `measures`: the figures.
"""
