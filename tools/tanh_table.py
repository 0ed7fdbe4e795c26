"""Prints the table of tanh in src/activation_body.h: `python tools/tanh_table.py`.

a = |x| falls into one of 8 intervals by the exponent and the upper bit of the mantissa of a + 3/4: halves of octaves
from 3/4 to 12. In each tanh is a polynomial of degree 7 in a - centre. The centre is a float near the middle whose tanh
is nearly one too, so that the constant term costs no accuracy. Coefficients are least squares of the relative error in
Chebyshev's points, rounded to float one after the other, and the rest fitted again.
"""

import numpy as np

SHIFT, DEGREE, POINTS = 0.75, 7, 400
STARTS = [0.75, 1, 1.5, 2, 3, 4, 6, 8, 12]


def centre_of(low, high):
    """The float near the middle whose tanh is nearest to a float."""
    middle = np.float32((low + high) / 2).view(np.uint32)
    near = (middle + np.arange(-2000, 2001)).astype(np.uint32).view(np.float32)
    exact = np.tanh(near.astype(np.float64))
    return near[np.argmin(np.abs(exact.astype(np.float32) / exact - 1))]


def fit(low, high):
    """The centre and the coefficients of ascending powers on [low, high], float32."""
    if low == 0:  # odd, so that the relative error stays small down to zero
        centre, found = np.float32(0), [np.float32(0), np.float32(1)]
    else:
        centre = centre_of(low, high)
        found = [np.float32(np.tanh(np.float64(centre)))]
    half = (high - low) / 2
    a = low + half * (1 + np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))
    t, want = a - np.float64(centre), np.tanh(a)
    while len(found) <= DEGREE:
        powers = np.arange(len(found), DEGREE + 1)
        left = want - sum(np.float64(c) * t**p for p, c in enumerate(found))
        scaled = (t[:, None] / half) ** powers / want[:, None]
        best = np.linalg.lstsq(scaled, left / want, rcond=None)[0]
        found.append(np.float32(best[0] / half ** powers[0]))
    return [centre, *found]


def main():
    columns = [fit(low - SHIFT, high - SHIFT) for low, high in zip(STARTS, STARTS[1:])]
    place = [(int(np.float32(start).view(np.uint32)) >> 22) % 8 for start in STARTS[:8]]
    columns = [columns[place.index(i)] for i in range(8)]
    for row in zip(*columns):
        print("    {" + ", ".join(f"{np.format_float_scientific(c, trim='0')}f" for c in row) + "},")


if __name__ == "__main__":
    main()
